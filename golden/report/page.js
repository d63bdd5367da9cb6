"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const all = (query, root = document) => [...root.querySelectorAll(query)];
  const SVG = "http://www.w3.org/2000/svg";
  const data = JSON.parse($("data").textContent);
  const list = data.tensors.map((values) => Object.fromEntries(values.map((value, i) => [data.keys[i], value])));
  const tensors = new Map(list.map((t) => [t.name, t]));
  const number = (v) => v.toLocaleString("en-US").replace("-", "−");
  const make = (tag, text, parent, css) => {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = text;
    if (css) node.className = css;
    if (parent) parent.append(node);
    return node;
  };
  const draw = (tag, attributes, parent, text) => {
    const node = document.createElementNS(SVG, tag);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    parent.append(node);
    return node;
  };

  // Tables: a click on a head sorts, numbers from the largest on, empty cells last
  const key = (row, column) => {
    const cell = row.cells[column];
    const text = cell.dataset.s ?? cell.textContent.trim();
    const value = Number(text.replaceAll(",", "").replace("−", "-"));
    return text === "" ? null : Number.isNaN(value) ? text : value;
  };
  for (const table of all("table.sortable")) {
    all("thead th", table).forEach((head, column) => {
      const button = make("button", head.textContent);
      button.type = "button";
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const body = table.tBodies[0];
        const keyed = [...body.rows].map((row) => [key(row, column), row]);
        const numeric = keyed.some(([k]) => typeof k === "number");
        const before = head.getAttribute("aria-sort");
        const down = before ? before === "ascending" : numeric;
        all("th[aria-sort]", table).forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const compare = (a, b) => (typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1);
        keyed.sort(([a], [b]) => (a === null ? (b === null ? 0 : 1) : b === null ? -1 : down ? compare(b, a) : compare(a, b)));
        body.append(...keyed.map(([, row]) => row));
      });
    });
  }

  // Tensors: words to find, a role, and one in detail
  const rows = all("#tensor-table tbody tr");
  const filter = () => {
    const words = $("tensor-find").value.toLowerCase().split(/\s+/).filter(Boolean);
    const role = $("tensor-role").value;
    let shown = 0;
    for (const row of rows) {
      const name = row.id.slice(2).toLowerCase();
      row.hidden = (role && row.dataset.role !== role) || !words.every((word) => name.includes(word));
      shown += !row.hidden;
    }
    $("tensor-count").textContent = `${number(shown)} of ${number(rows.length)}`;
  };
  $("tensor-find").addEventListener("input", filter);
  $("tensor-role").addEventListener("change", filter);
  filter();

  const real = (value) => Number(value.toPrecision(4)).toString().replace("-", "−");
  const share = (part, whole) => (part === 0 ? "0" : `${Number((100 * part / whole).toPrecision(3))} %`);

  function histogram(t, w) {
    const { shift, first, counts } = t.histogram;
    const size = 2 ** shift, h = 210, left = 44, base = 168;
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", `0 0 ${w} ${h}`);
    svg.setAttribute("width", w);
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", `Histogram of ${t.name}: ${number(t.elements)} integers from ${number(t.low)} to ${number(t.high)}`);
    const top = Math.log10(1 + Math.max(...counts)), step = (w - left - 8) / counts.length;
    const y = (count) => base - (base - 12) * Math.log10(1 + count) / top;
    for (let decade = 0; decade <= top; decade += Math.max(1, Math.floor(top / 4))) {
      const at = y(10 ** decade);
      draw("path", { class: "axis", d: `M${left} ${at}H${w - 8}` }, svg);
      const tick = draw("text", { x: left - 6, y: at + 4, "text-anchor": "end", class: "note" }, svg, decade < 4 ? number(10 ** decade) : "10");
      if (decade >= 4) draw("tspan", { dy: -4, class: "sup" }, tick, decade);
    }
    const low = t.signed ? -(2 ** (t.bits - 1)) : 0, high = (t.signed ? 2 ** (t.bits - 1) : 2 ** t.bits) - 1;
    const lossy = t.saturated !== null && t.saturated > 0;
    counts.forEach((count, i) => {
      if (!count) return;
      const from = (first + i) * size;
      const end = lossy && (from <= low || from + size - 1 >= high);
      const bar = draw("rect", { class: end ? "end" : "count", x: left + i * step, y: y(count), width: Math.max(step - (step > 4 ? 1 : 0), .8), height: base - y(count) }, svg);
      draw("title", {}, bar, `${number(from)}${size > 1 ? ` … ${number(from + size - 1)}` : ""}: ${number(count)}`);
    });
    const begin = first * size, stop = (first + counts.length) * size;
    const ticks = [begin, stop - 1];
    if (begin < 0 && stop > 0 && Math.min(-begin, stop) > (stop - begin) / 7) ticks.push(0);
    for (const tick of ticks) {
      const x = left + (tick - begin + (tick === 0 ? size / 2 : tick === begin ? 0 : 1)) / size * step;
      const anchor = tick === begin ? "start" : tick === 0 ? "middle" : "end";
      draw("text", { x, y: base + 16, "text-anchor": anchor, class: "fmt" }, svg, number(tick));
      if (t.exponent !== null && tick) draw("text", { x, y: base + 31, "text-anchor": anchor, class: "note" }, svg, `${real(tick * 2 ** t.exponent)} in its unit`);
    }
    return svg;
  }

  function show(name, move) {
    const t = tensors.get(name);
    if (!t) return;
    all("tr.chosen").forEach((row) => row.classList.remove("chosen"));
    const row = $(`t-${name}`), box = $("detail");
    row.classList.add("chosen");
    box.hidden = false;
    box.replaceChildren();
    make("h3", t.name, box);
    if (t.histogram) {
      box.append(histogram(t, Math.max(260, Math.min(760, (box.clientWidth - 32) * (innerWidth > 720 ? .58 : 1)))));
    } else {
      make("p", "No image was run, so there is no histogram.", box);
    }
    const terms = make("dl", undefined, box);
    const line = (term, text) => { make("dt", term, terms); return make("dd", text, terms); };
    const format = line("format", `${t.signed ? "signed" : "unsigned"}, ${t.bits} bits, ${t.exponent === null ? "floating" : "unit 2"}`);
    if (t.exponent !== null) make("sup", number(t.exponent), format);
    line("shape", `${t.shape.join(" × ")} (${t.axes.join(", ")})`);
    for (const g of t.groups) line(`groups by ${g.axis}`, g.shifts.map((s, i) => `≪${s}: ${number(g.positions[i])}`).join(", "));
    for (const o of t.offsets) line(`exponent by ${o.axis}`, o.low === o.high ? `+ ${number(o.low)}` : `+ ${number(o.low)} … ${number(o.high)}`);
    if (t.proven !== null) line("proven", `${t.proven} bits${t.enough && t.enough !== t.proven ? ` (${t.enough} with b clamped)` : ""}: ${number(t.proven_low)} … ${number(t.proven_high)}`);
    if (t.used !== null) line("used", `${t.used} bits: ${number(t.low)} … ${number(t.high)}`);
    else if (t.low !== null) line("seen", `${number(t.low)} … ${number(t.high)}`);
    if (t.elements !== null) line("integers", `${number(t.elements)}, of which zero ${share(t.zeros, t.elements)}`);
    if (t.saturated !== null) line("saturated", `${number(t.saturated)} (${share(t.saturated, t.elements)})`);
    if (t.sqnr !== null) line("SQNR", `${t.sqnr.toFixed(2)} dB${t.fitted ? ", fused factors fitted" : ""}`);
    if (t.histogram && t.histogram.shift) make("p", `One bar stands for ${number(2 ** t.histogram.shift)} integers.`, box);
    if (!move) return;
    if (row.hidden) { $("tensor-find").value = ""; $("tensor-role").value = ""; filter(); }
    const frame = row.closest(".scroll");
    frame.scrollTop += row.getBoundingClientRect().top - frame.getBoundingClientRect().top - frame.clientHeight / 2;
    box.scrollIntoView({ block: "start" });
  }
  $("tensor-table").tBodies[0].addEventListener("click", (event) => {
    const row = event.target.closest("tr");
    if (!row) return;
    event.preventDefault();
    history.replaceState(null, "", `#${row.id}`);
    show(row.id.slice(2), false);
    const top = $("detail").getBoundingClientRect().top;
    if (top < 60 || top > innerHeight - 200) $("detail").scrollIntoView({ block: "start" });
  });
  const follow = () => {
    const hash = decodeURIComponent(location.hash);
    if (hash.startsWith("#t-")) show(hash.slice(3), true);
  };
  addEventListener("hashchange", follow);
  all('a[href^="#t-"]').forEach((a) => a.addEventListener("click", () => { if (a.getAttribute("href") === location.hash) follow(); }));
  const worst = list.filter((t) => t.sqnr !== null && t.role === "state").sort((a, b) => a.sqnr - b.sqnr)[0];
  const start = worst ?? list.find((t) => t.role === "output" && t.histogram) ?? list[0];
  if (start) show(start.name, false);
  if (location.hash) follow();

  // One layer of all
  const choice = $("layer-choice");
  if (choice) {
    const pick = (name) => { choice.value = name; all(".one-layer").forEach((one) => { one.hidden = one.dataset.layer !== name; }); middle(); };
    choice.addEventListener("change", () => pick(choice.value));
    all("a.cell").forEach((cell) => cell.addEventListener("click", () => pick(cell.dataset.layer)));
  }

  // Wide drawings of one layer start in the middle, where its input is
  const middle = () => all(".one-layer .scroll").forEach((frame) => { frame.scrollLeft = (frame.scrollWidth - frame.clientWidth) / 2; });
  middle();

  // Cells of the layers
  const press = (buttons, button) => buttons.forEach((b) => b.setAttribute("aria-pressed", String(b === button)));
  const metrics = all("[data-metric]");
  for (const button of metrics) {
    button.addEventListener("click", () => {
      press(metrics, button);
      for (const cell of all(".heat td")) {
        const [text, strength] = JSON.parse(cell.dataset.v)[button.dataset.metric];
        cell.firstElementChild.textContent = text;
        cell.style.setProperty("--v", strength);
      }
    });
  }

  // Registers
  $("register-kind").addEventListener("change", (event) => {
    const kind = event.target.value;
    for (const row of all("#register-table tbody tr")) {
      row.hidden = kind === "shown" ? row.dataset.shown === "0" : kind !== "" && row.dataset.kind !== kind;
    }
  });

  // Images: a few, until more are asked for
  const cards = all(".card"), filters = all("[data-images]"), more = $("more-images");
  if (more) {
    let only = "", limit = innerWidth > 720 ? 15 : 6;
    const update = () => {
      const fitting = cards.filter((card) => !only || card.classList.contains(only));
      cards.forEach((card) => { card.hidden = true; });
      fitting.slice(0, limit).forEach((card) => { card.hidden = false; });
      more.hidden = fitting.length <= limit;
      more.textContent = `Show all ${fitting.length}`;
    };
    filters.forEach((button) => button.addEventListener("click", () => { only = button.dataset.images; press(filters, button); update(); }));
    more.addEventListener("click", () => { limit = Infinity; update(); });
    addEventListener("beforeprint", () => { limit = Infinity; update(); });
    update();
  }

  // Where in the page
  const links = new Map(all("nav a").map((a) => [a.getAttribute("href").slice(1), a]));
  const seen = new Set();
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) (entry.isIntersecting ? seen.add(entry.target.id) : seen.delete(entry.target.id));
    const current = [...links.keys()].find((id) => seen.has(id));
    links.forEach((a, id) => {
      if (id !== current) { a.removeAttribute("aria-current"); return; }
      a.setAttribute("aria-current", "true");
      const list = a.closest("ol");
      list.scrollLeft += a.getBoundingClientRect().left - list.getBoundingClientRect().left - list.clientWidth / 3;
    });
  }, { rootMargin: "-20% 0px -70% 0px" });
  all("main section").forEach((section) => observer.observe(section));
})();
