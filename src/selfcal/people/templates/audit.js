// The audit's pages: keys, marks, how long somebody looked, and what a browser remembers of its user.
"use strict";
(() => {
  const root = document.documentElement;
  const keep = (name, value) => { try { localStorage.setItem(name, value); } catch { /* not allowed */ } };
  const kept = (name) => { try { return localStorage.getItem(name); } catch { return null; } };

  // every pair is a page of its own: the theme goes with it
  if (["light", "dark"].includes(kept("theme"))) root.dataset.theme = kept("theme");
  document.getElementById("theme").addEventListener("click", () => keep("theme", root.dataset.theme));

  // a screen reader says where we are
  if (!document.querySelector("[autofocus]")) document.getElementById("heading").focus();

  for (const image of document.querySelectorAll(".images img")) {
    const look = () => image.classList.toggle("tiny", image.naturalWidth > 0 && image.naturalWidth < 160);
    image.addEventListener("load", look);
    if (image.complete) look();
  }

  const form = document.getElementById("pair");
  if (!form) return;
  const field = (name) => form.elements.namedItem(name);

  // the first false sentence: one at most
  const sentences = [...form.querySelectorAll(".sentence")];
  const flaw = document.getElementById("flaw");
  const status = document.getElementById("status");
  const mark = (name) => {
    field("mark").value = name;
    for (const s of sentences) s.setAttribute("aria-pressed", String(s.dataset.mark === name));
    flaw.hidden = !name;
    if (!name) for (const radio of flaw.querySelectorAll("input")) radio.checked = false;
    const [side, number] = name.split(":");
    status.textContent = name ? `Sentence ${number} of ${side.toUpperCase()} is marked.` : "No sentence is marked.";
  };
  for (const s of sentences) {
    s.addEventListener("click", () => mark(field("mark").value === s.dataset.mark ? "" : s.dataset.mark));
  }
  document.getElementById("unmark").addEventListener("click", () => {
    const own = sentences.find((s) => s.dataset.mark === field("mark").value);
    mark("");
    if (own) own.focus();
  });

  // seconds that the page was in sight
  let since = performance.now(), seen = 0;
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) seen += performance.now() - since;
    since = performance.now();
  });

  let sent = false;
  form.addEventListener("submit", (event) => {
    if (sent) { event.preventDefault(); return; }
    sent = true;
    field("seconds").value = Math.min((seen + performance.now() - since) / 1000, 86400).toFixed(1);
  });
  addEventListener("pageshow", () => { sent = false; });

  const on = document.getElementById("use-keys");
  on.checked = kept("keys") !== "off";
  const shown = () => root.classList.toggle("without-keys", !on.checked);
  on.addEventListener("change", () => { keep("keys", on.checked ? "on" : "off"); shown(); });
  shown();
  addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.target instanceof HTMLInputElement) {
      event.preventDefault(); // it would press the form's first button
      return;
    }
    // a key that is held down must not judge one pair after the other
    if (!on.checked || sent || event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key.startsWith("Arrow") && event.target instanceof HTMLInputElement) return;
    const name = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    for (const own of document.querySelectorAll("[data-keys]")) {
      if (own.dataset.keys.split(" ").includes(name)) {
        event.preventDefault();
        own.click();
        return;
      }
    }
  });
})();
