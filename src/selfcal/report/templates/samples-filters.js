// What the samples' list filters and sorts by, out of the lines of the index; and reasons in words.
"use strict";
const samplesFilters = (() => {
  const steps = (row, where) => row.steps.filter((step) => !where || step.place === where);
  const flawsOf = (row, where) => {
    const named = new Set();
    const add = (whose, flaws) => {
      for (const flaw of flaws || []) {
        named.add(`${whose}: ${flaw}`);
        named.add(`anywhere: ${flaw}`);
      }
    };
    for (const step of steps(row, where)) {
      add("chosen", step.chosen);
      add("rejected", step.rejected);
    }
    add("last answer", row.last);
    return named;
  };
  const outcomesOf = (row, where) => {
    const named = new Set();
    const own = steps(row, where);
    const kept = new Set(own.filter((step) => step.kept).map((step) => step.place));
    for (const step of own) {
      for (const name of step.kept || []) named.add("kept").add(`kept: ${name}`);
      if (!kept.has(step.place) && step.dropped) named.add("left out");
      for (const name of step.dropped || []) named.add(name);
    }
    return named;
  };
  const judgeOf = (row, where) => {
    const named = new Set();
    for (const step of steps(row, where)) {
      if (step.asked) named.add(step.against ? "disagree" : "agree on all");
      if (step.worse) named.add("chosen is worse");
    }
    return named;
  };
  const FILTERS = {
    split: (row) => new Set([row.split]),
    category: (row) => new Set(row.category ? [row.category] : []),
    iteration: (row) => new Set(row.steps.map((step) => step.place)),
    outcome: outcomesOf,
    flaw: flawsOf,
    judge: judgeOf,
    change: (row) => new Set(row.change ? [row.change] : []),
  };
  const most = (row, key) => Math.max(-1, ...row.steps.map((step) => step[key] ?? -1));
  const ORDERS = {
    "as drawn": null,
    "biggest change": (row) => row.size ?? -1,
    "widest margin": (row) => most(row, "margin"),
    "most disagreement": (row) =>
      Math.max(-1, ...row.steps.map((step) => (step.asked ? step.against / step.asked + (step.worse ? 1 : 0) : -1))),
  };

  // iterations in their order, then the other stages; what was kept, then why samples were left out
  const FIRST = [/^iter-/, /^kept$/, /^kept: /, /^left out$/];
  const rank = (text) => {
    const at = FIRST.findIndex((own) => own.test(text));
    return at < 0 ? FIRST.length : at;
  };
  const byRank = ([, a], [, b]) => rank(a) - rank(b) || a.localeCompare(b, "en", { numeric: true });

  const sentences = new Map(Object.entries(JSON.parse(document.getElementById("samples-words").textContent)));
  const reasonOf = (name) => name.slice(name.indexOf(": ") + 2);
  const inWords = (name) => {
    const words = name.includes(": ") && sentences.get(reasonOf(name));
    return words ? `${name.split(": ")[0]}: ${words}` : name;
  };
  return { FILTERS, ORDERS, byRank, inWords, reasonOf };
})();
