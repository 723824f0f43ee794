"use strict";
// Adds to a page that is whole without it: details of a mark, the same candidate lit up everywhere, sorting, saving.
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const tip = document.getElementById("tip");
  const make = (tag, text) => Object.assign(document.createElement(tag), { textContent: text });

  const light = (key) => {
    all(".lit").forEach((found) => found.classList.remove("lit"));
    if (key) all(`[data-c="${key}"]`).forEach((found) => found.classList.add("lit"));
  };

  const details = (mark) => {
    // A mark of the plan stands for a recipe with a signal, of which no card tells.
    if (mark.closest("#plan")) return [make("span", mark.getAttribute("aria-label"))];
    const card = document.getElementById(mark.dataset.c);
    const list = document.createElement("dl");
    all("dl.figures > .key", card).forEach((pair) => list.append(pair.cloneNode(true)));
    return [make("b", card.querySelector(".who a").textContent), list];
  };

  const show = (mark) => {
    const key = mark.dataset.c;
    light(key);
    tip.replaceChildren(...details(mark));
    tip.hidden = false;
    const at = mark.querySelector(".mark").getBoundingClientRect();
    const room = document.documentElement.clientWidth;
    const left = Math.min(Math.max(at.left + at.width / 2 - tip.offsetWidth / 2, 8), room - tip.offsetWidth - 8);
    const above = at.top - tip.offsetHeight - 10;
    tip.style.left = `${left + scrollX}px`;
    tip.style.top = `${(above > 50 ? above : at.bottom + 10) + scrollY}px`;
  };

  const hide = () => {
    tip.hidden = true;
    light(null);
  };

  all(".point").forEach((mark) => {
    // The browser's own hint would stand beside ours.
    mark.querySelector("title").remove();
    mark.addEventListener("pointerenter", () => show(mark));
    mark.addEventListener("pointerleave", hide);
    mark.addEventListener("focus", () => show(mark));
    mark.addEventListener("blur", hide);
    mark.addEventListener("click", () => show(mark));
  });
  all("tr[data-c], .row[data-c]").forEach((row) => {
    row.addEventListener("pointerenter", () => light(row.dataset.c));
    row.addEventListener("pointerleave", () => light(null));
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
  });

  const openTarget = () => {
    const found = document.getElementById(location.hash.slice(1));
    if (found instanceof HTMLDetailsElement) found.open = true;
  };
  addEventListener("hashchange", openTarget);
  openTarget();

  const sortKey = (row, column) => {
    const cell = row.cells[column];
    const figure = cell.querySelector("data");
    return figure ? Number(figure.value) : column ? null : cell.textContent;
  };
  const compare = (one, other) => (typeof one === "number" ? one - other : one.localeCompare(other));
  all("table.sortable").forEach((table) => {
    all("thead th", table).forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const descending = head.getAttribute("aria-sort") === "ascending";
        all("[aria-sort]", table).forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", descending ? "descending" : "ascending");
        const keyed = [...table.tBodies[0].rows].map((row) => [sortKey(row, column), row]);
        // Rows without the figure stay at the end either way.
        keyed.sort(([one], [other]) =>
          one === null || other === null ? (one === null) - (other === null) : (descending ? -1 : 1) * compare(one, other));
        table.tBodies[0].append(...keyed.map(([, row]) => row));
      });
    });
  });

  addEventListener("beforeprint", () => all("details").forEach((card) => (card.open = true)));

  all("button.save").forEach((save) => {
    save.hidden = false;
    save.addEventListener("click", () => {
      const json = document.getElementById(save.dataset.of).textContent;
      const url = URL.createObjectURL(new Blob([json], { type: "application/json" }));
      Object.assign(document.createElement("a"), { href: url, download: save.dataset.file }).click();
      URL.revokeObjectURL(url);
    });
  });
})();
