// The samples' list, its filters and its search, and the page of the sample that is opened.
// Everything that a run wrote comes in as text: into the list by textContent, and as a sample's page by
// the parser from what the template escaped. Nothing is asked of any network.
"use strict";
(() => {
  const box = document.getElementById("inspector");
  if (!box) return;
  const PAGE = 50;
  const part = box.closest("section") || document.body;
  const { FILTERS, ORDERS, byRank, inWords, reasonOf } = samplesFilters;
  const find = (what) => box.querySelector(what);
  const form = find("form");
  const rows = JSON.parse(document.getElementById("samples-index").textContent);
  const blocks = [...document.querySelectorAll("script.sample")];
  const corpus = [...document.querySelectorAll("script.corpus")];
  const narrow = matchMedia("(max-width: 60rem)");
  let found = []; // numbers of the samples that the filters leave, in their order
  let page = 0;
  let opened = -1;
  let picked = false; // whether a reader asked for the opened sample: then the address names it
  let turn = 0; // counts searches: a later one ends those before it
  let asked = 0; // counts samples that were asked for
  let pruned = null; // whether pruned sentences are shown, once a reader has said so

  const make = (name, text, className) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  };
  const unpack = (block) => {
    const bytes = Uint8Array.from(atob(block.textContent), (char) => char.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Response(stream).text();
  };
  const pause = () => new Promise((done) => setTimeout(done));
  const count = (n, unit) => `${n.toLocaleString("en")} ${n === 1 ? unit.replace(/s$/, "") : unit}`;

  // --- filters -------------------------------------------------------------------------------

  const option = (value, text) => {
    const made = make("option", text);
    made.value = value;
    return made;
  };
  const fillSelect = (name) => {
    const values = new Set();
    for (const row of rows) for (const value of FILTERS[name](row)) values.add(value);
    const select = form.elements[name];
    select.replaceChildren(option("", "any"));
    const groups = new Map();
    for (const value of values) {
      const [group, inside] = name === "flaw" ? value.split(": ") : ["", value];
      if (!groups.has(group)) groups.set(group, []);
      groups.get(group).push([value, inside]);
    }
    for (const group of [...groups.keys()].sort()) {
      const into = group ? make("optgroup") : select;
      if (group) select.append(Object.assign(into, { label: group }));
      for (const [value, text] of groups.get(group).sort(byRank)) {
        const made = option(value, name === "outcome" ? inWords(text) : text);
        made.title = made.textContent;
        into.append(made);
      }
    }
    select.closest("label").hidden = values.size < (name === "flaw" || name === "judge" ? 1 : 2);
  };
  const setUp = () => {
    for (const name of Object.keys(FILTERS)) fillSelect(name);
    for (const name of Object.keys(ORDERS)) {
      const known = !ORDERS[name] || rows.some((row) => ORDERS[name](row) > -1);
      if (known) form.elements.sort.append(option(name === "as drawn" ? "" : name, name));
    }
  };

  // --- search in texts -----------------------------------------------------------------------

  const texts = []; // by number of the sample
  const readTexts = async () => {
    for (const block of corpus) {
      const from = Number(block.dataset.from);
      if (texts[from] === undefined) {
        const own = (await unpack(block)).split("\0");
        own.forEach((text, i) => { texts[from + i] = text.toLowerCase(); });
        await pause();
      }
    }
  };
  const search = async (query, mine) => {
    const words = (query.toLowerCase().match(/"[^"]+"|\S+/g) || []).map((word) => word.replace(/^"(.*)"$/, "$1"));
    if (!words.length) return null;
    await readTexts();
    const hits = new Set();
    for (let i = 0; i < rows.length && mine === turn; i++) {
      if (words.every((word) => (texts[i] || "").includes(word))) hits.add(i);
      if (i % 500 === 499) await pause();
    }
    return hits;
  };

  // --- the list ------------------------------------------------------------------------------

  const chosen = () => Object.fromEntries([...new FormData(form)].filter(([, value]) => value));
  const list = async () => {
    const mine = ++turn;
    const want = chosen();
    let hits = null;
    if (want.q) {
      find(".count").textContent = "Searching …";
      hits = await search(want.q, mine);
      if (mine !== turn) return false;
    }
    const where = want.iteration;
    const names = Object.keys(FILTERS).filter((name) => want[name]);
    find(".more").textContent = names.length ? `Filters (${names.length})` : "Filters";
    found = [];
    rows.forEach((row, i) => {
      if ((!hits || hits.has(i)) && names.every((name) => FILTERS[name](row, where).has(want[name]))) found.push(i);
    });
    const order = ORDERS[want.sort];
    if (order) found.sort((a, b) => order(rows[b]) - order(rows[a]) || a - b);
    page = Math.max(0, Math.floor(found.indexOf(opened) / PAGE));
    showList();
    return true;
  };
  const apply = async () => {
    if (await list()) first();
  };
  const first = () => {
    if (!picked && !found.includes(opened)) {
      if (found.length && !narrow.matches) open(found[0], false);
      else close();
    }
    saveHash(false);
  };
  const tagsOf = (row) => {
    const tags = make("span", undefined, "tags");
    const add = (text, className, title) => {
      tags.append(Object.assign(make("span", text, `tag ${className || ""}`), { title: title || text }), " ");
    };
    for (const step of row.steps) {
      if (step.worse) add("✗ chosen is worse", "bad");
      if (step.kept) add(step.margin === undefined ? step.kept.join(", ") : `pair, margin ${step.margin.toFixed(2)}`);
      else for (const why of step.dropped || []) add(`left out: ${reasonOf(why)}`, "unsure", inWords(why));
      if (step.against) add(`≠ ${step.against} of ${step.asked}`, "unsure", `judge and verifier disagree on ${step.against} of ${step.asked} pairs of candidates`);
    }
    if (row.change === "mended") add("↑ mended", "good");
    if (row.change === "spoiled") add("↓ spoiled", "bad");
    if (row.last && !row.last.length) add("✓ right and sound", "good");
    if (row.last && row.last.length) add(`✗ ${row.last[0]}${row.last.length > 1 ? ` +${row.last.length - 1}` : ""}`, "bad");
    return tags;
  };
  const showList = () => {
    const list = find(".rows");
    list.replaceChildren();
    list.start = page * PAGE + 1;
    for (const i of found.slice(page * PAGE, (page + 1) * PAGE)) {
      const row = rows[i];
      const link = make("a");
      link.href = hashOf({ id: row.id });
      link.dataset.n = i;
      if (i === opened) link.setAttribute("aria-current", "true");
      const top = make("span", undefined, "line");
      top.append(make("span", row.name || row.id, "id"), " ", make("span", row.category || "", "soft"));
      link.append(top, " ", make("span", row.question || "", "question"), " ", tagsOf(row));
      const item = make("li");
      item.append(link);
      list.append(item);
    }
    const all = found.length === rows.length;
    find(".count").textContent = all ? count(rows.length, "samples") : `${found.length.toLocaleString("en")} of ${count(rows.length, "samples")}`;
    find(".nothing").hidden = found.length > 0;
    find(".widen").textContent = widest() ? `Leave out “${widest()[1]}”` : "";
    showPages();
    showPlace();
  };
  const widest = () => Object.entries(chosen()).filter(([name]) => name !== "sort").pop();
  const showPages = () => {
    const last = Math.max(0, Math.ceil(found.length / PAGE) - 1);
    const nav = find(".pages");
    nav.hidden = last === 0;
    const button = (text, to, name) => {
      const made = make("button", text);
      made.type = "button";
      made.setAttribute("aria-label", name);
      made.disabled = to < 0 || to > last;
      made.addEventListener("click", () => {
        page = to;
        showList();
        find(".rows").scrollTop = 0;
        find(".rows a")?.focus();
      });
      return made;
    };
    const span = make("span", `${(page * PAGE + 1).toLocaleString("en")}–${Math.min(found.length, (page + 1) * PAGE).toLocaleString("en")}`, "soft small");
    nav.replaceChildren(button("←", page - 1, "Previous page of the list"), span, button("→", page + 1, "Next page of the list"));
  };

  // --- one sample ----------------------------------------------------------------------------

  const open = async (n, byReader) => {
    picked = picked || byReader;
    if (n === opened) {
      saveHash(byReader);
      return byReader && enter();
    }
    const mine = ++asked;
    opened = n;
    let inside;
    try {
      const text = await unpack(blocks[n]);
      inside = document.adoptNode(new DOMParser().parseFromString(text, "text/html").querySelector("article"));
    } catch {
      inside = make("p", "This sample cannot be opened: its part of the file is damaged, or the browser is older than 2023.", "bad");
    }
    if (mine !== asked) return;
    for (const image of inside.querySelectorAll("img[data-image]")) {
      image.src = document.getElementById(`image-${image.dataset.image}`)?.textContent || "";
    }
    for (const fold of inside.querySelectorAll(".fold")) if (pruned !== null) showPruned(fold, pruned);
    find(".detail").replaceChildren(inside);
    find(".opened").hidden = false;
    const at = found.indexOf(n);
    if (at >= 0 && Math.floor(at / PAGE) !== page) {
      page = Math.floor(at / PAGE);
      showList();
    }
    showPlace();
    saveHash(byReader);
    if (byReader) enter();
  };
  const close = () => {
    asked++;
    opened = -1;
    picked = false;
    box.classList.remove("reading");
    find(".opened").hidden = true;
    find(".detail").replaceChildren();
  };
  const enter = () => {
    box.classList.add("reading");
    const heading = find(".detail h2");
    if (box.getBoundingClientRect().top < 0 || narrow.matches) find(".opened").scrollIntoView();
    heading?.focus({ preventScroll: true });
  };
  const leave = () => {
    if (narrow.matches && box.classList.contains("reading")) {
      picked = false; // the address names what is to be seen: the list
      saveHash(true);
    }
    box.classList.remove("reading");
    const link = find('a[aria-current="true"]') || find(".rows a") || form.elements.q;
    link.focus();
    link.scrollIntoView({ block: "nearest" });
  };
  const showPlace = () => {
    const at = found.indexOf(opened);
    for (const link of box.querySelectorAll(".rows a")) {
      if (Number(link.dataset.n) === opened) {
        link.setAttribute("aria-current", "true");
        const list = find(".rows"); // moved by hand: scrollIntoView would move the page, too
        const item = link.parentElement;
        if (item.offsetTop < list.scrollTop || item.offsetTop + item.offsetHeight > list.scrollTop + list.clientHeight) {
          list.scrollTop = item.offsetTop - list.clientHeight / 3;
        }
      } else link.removeAttribute("aria-current");
    }
    find(".where").textContent = at < 0 ? "not in this list" : `${(at + 1).toLocaleString("en")} of ${found.length.toLocaleString("en")}`;
    find(".before").disabled = at <= 0;
    find(".after").disabled = at + 1 >= found.length || !found.length;
  };
  const go = (by) => {
    const to = found.indexOf(opened) + by;
    if (to >= 0 && to < found.length) open(found[to], true);
  };
  const showPruned = (button, show) => {
    button.closest(".grown").classList.toggle("folded", !show);
    button.setAttribute("aria-expanded", String(show));
    button.textContent = `${show ? "Hide" : "Show"} ${button.dataset.n} pruned`;
  };

  // --- the address ---------------------------------------------------------------------------

  const hashOf = (values) => {
    const pairs = new URLSearchParams(values).toString().replace(/\+/g, "%20");
    return pairs ? `#samples?${pairs}` : "#samples";
  };
  const saveHash = (push) => {
    if (part.hidden) return;
    const values = chosen();
    if (picked && rows[opened]) values.id = rows[opened].id;
    const twice = values.id !== undefined && rows.filter((row) => row.id === values.id).length > 1;
    if (twice) values.of = rows[opened].split;
    const hash = hashOf(values);
    if (hash !== location.hash) history[push ? "pushState" : "replaceState"](null, "", hash);
  };
  const named = () => new URLSearchParams(location.hash.slice(1).split("?").slice(1).join("?"));
  const isOurs = (address) => /#samples(\?|$)/.test(address);
  const readHash = async (inside) => {
    if (!isOurs(location.hash)) return;
    const values = named();
    if (!inside && ![...values].length) return saveHash(false); // back from another part: all is as it was
    for (const control of form.elements) {
      if (control.name) control.value = values.get(control.name) || "";
      if (control.selectedIndex === -1) control.value = "";
    }
    const is = (row) => row.id === values.get("id") && (!values.get("of") || row.split === values.get("of"));
    const n = values.has("id") ? rows.findIndex(is) : -1;
    if (n < 0) {
      opened = -1;
      picked = false;
      box.classList.remove("reading");
      if (await list()) first();
      if (values.has("id")) find(".count").textContent += ` – the sample ${values.get("id").slice(0, 80)} is not among those that are shown here`;
      return;
    }
    if (!(await list())) return;
    picked = true;
    box.classList.add("reading");
    await open(n, false);
    enter();
  };

  // --- hands on ------------------------------------------------------------------------------

  let wait;
  form.addEventListener("input", (event) => {
    clearTimeout(wait);
    wait = setTimeout(apply, event.target.name === "q" ? 150 : 0);
  });
  form.addEventListener("reset", () => setTimeout(apply));
  form.querySelector(".more").addEventListener("click", (event) => {
    event.target.setAttribute("aria-expanded", String(form.classList.toggle("all")));
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  find(".widen").addEventListener("click", () => {
    const [name] = widest() || [];
    if (name) form.elements[name].value = "";
    form.elements[name || "q"].focus();
    apply();
  });
  find(".rows").addEventListener("click", (event) => {
    const link = event.target.closest("a");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    open(Number(link.dataset.n), true);
  });
  find(".detail").addEventListener("click", (event) => {
    const button = event.target.closest(".fold");
    if (!button) return;
    pruned = button.getAttribute("aria-expanded") !== "true";
    showPruned(button, pruned);
  });
  find(".before").addEventListener("click", () => go(-1));
  find(".after").addEventListener("click", () => go(1));
  find(".back").addEventListener("click", leave);
  addEventListener("keydown", (event) => {
    const typing = event.target.closest?.("input, select, textarea");
    if (part.hidden || typing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "j") go(1);
    else if (event.key === "k") go(-1);
    else if (event.key === "Escape") leave();
  });
  addEventListener("hashchange", (event) => readHash(isOurs(event.oldURL)));
  setUp();
  box.hidden = false;
  if (/^#samples\?/.test(location.hash)) readHash(true);
  else apply();
})();
