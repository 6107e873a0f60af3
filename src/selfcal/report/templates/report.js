// Long tables a page at a time; without scripts they are whole.
"use strict";
(() => {
  const AT_ONCE = 25;
  for (const table of document.querySelectorAll("table.paged")) {
    const rows = [...table.tBodies[0].rows];
    if (rows.length <= AT_ONCE) continue;
    const last = Math.ceil(rows.length / AT_ONCE) - 1;
    let at = 0;
    const bar = document.createElement("div");
    bar.className = "pager";
    const button = (text, step) => {
      const made = document.createElement("button");
      made.type = "button";
      made.textContent = text;
      made.addEventListener("click", () => { at += step; show(); });
      return made;
    };
    const said = document.createElement("span");
    said.setAttribute("aria-live", "polite");
    const back = button("Back", -1);
    const on = button("Next", 1);
    bar.append(back, on, said);
    const show = () => {
      rows.forEach((row, i) => { row.hidden = Math.floor(i / AT_ONCE) !== at; });
      back.disabled = at === 0;
      on.disabled = at === last;
      said.textContent = `${at * AT_ONCE + 1} to ${Math.min(rows.length, (at + 1) * AT_ONCE)} of ${rows.length}`;
    };
    table.closest(".scroll").before(bar);
    show();
  }
})();
