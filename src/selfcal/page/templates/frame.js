// What every page does: light and dark, and its parts as tabs that a link can name.
"use strict";
(() => {
  const root = document.documentElement;
  const dark = () => matchMedia("(prefers-color-scheme: dark)").matches;
  document.getElementById("theme").addEventListener("click", () => {
    const now = root.dataset.theme || (dark() ? "dark" : "light");
    root.dataset.theme = now === "dark" ? "light" : "dark";
  });

  // A part is `<section class="part" id=...>`; without scripts all parts are shown one below the other.
  const parts = [...document.querySelectorAll("section.part")];
  const links = [...document.querySelectorAll("nav.parts a")];
  const named = () => {
    const name = location.hash.slice(1).split("?")[0];
    try { return decodeURIComponent(name); } catch { return name; } // a broken % of a mistyped address
  };
  const show = () => {
    const inside = document.getElementById(named());
    const own = parts.find((part) => part === inside || (inside && part.contains(inside))) || parts[0];
    for (const part of parts) part.hidden = part !== own;
    for (const link of links) {
      const current = own && link.getAttribute("href") === `#${own.id}`;
      if (current) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
  };
  if (parts.length > 1) {
    addEventListener("hashchange", () => { show(); scrollTo(0, 0); });
    show();
  }
})();
