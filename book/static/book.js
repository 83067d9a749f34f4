/* Formulas after the first paint, tables and formulas that fit a telephone, the explorers, print. */
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  /* ---- MathJax: fetched once the text is on the screen ---- */

  function typeset() {
    const done = () => { bind(); fit(); document.documentElement.dataset.typeset = "done"; };
    const waiting = document.getElementById("mathjax");
    if (!waiting) return done();
    const script = document.createElement("script");
    script.src = waiting.src;
    script.onload = () => MathJax.startup.promise.then(done);
    script.onerror = done;
    document.head.append(script);
  }

  /* ---- punctuation stays on the line of its formula ---- */

  function bind() {
    all("article span.math.notranslate").forEach((formula) => {
      const [before, after] = [formula.previousSibling, formula.nextSibling];
      const opened = before?.nodeType === Node.TEXT_NODE && before.data.match(/[(\[]+$/);
      const closed = after?.nodeType === Node.TEXT_NODE && after.data.match(/^[.,;:!?)\]]+/);
      if (!opened && !closed) return;
      const together = document.createElement("span");
      together.style.whiteSpace = "nowrap";
      formula.before(together);
      together.append(formula);
      if (opened) { before.data = before.data.slice(0, -opened[0].length); together.prepend(opened[0]); }
      if (closed) { after.data = after.data.slice(closed[0].length); together.append(closed[0]); }
    });
  }

  /* ---- what is wider than its column ---- */

  const LEAST = 0.72; // of the size of a displayed formula: below, it scrolls

  function fit() {
    all('mjx-container[display="true"]').forEach((formula) => {
      formula.style.fontSize = formula.dataset.size ??= formula.style.fontSize || "100%";
      const share = formula.clientWidth / formula.scrollWidth;
      if (formula.clientWidth && share < 1) {
        formula.style.fontSize = `${parseFloat(formula.dataset.size) * Math.max(share * 0.99, LEAST)}%`;
      }
    });
    all("article table").forEach((table) => {
      const box = table.parentElement;
      table.classList.remove("stacked", "wrapped");
      if (box.clientWidth > 600 && table.scrollWidth > box.clientWidth + 1) table.classList.add("wrapped");
      if (box.clientWidth && table.scrollWidth > box.clientWidth + 1 && headed(table)) {
        table.classList.add("stacked");
      }
    });
    all("pre, .output, .book-table, .pst-scrollable-table-container, mjx-container[display]").forEach((box) => {
      if (box.scrollWidth > box.clientWidth + 1) box.tabIndex = 0; else box.removeAttribute("tabindex");
    });
  }

  /* A table whose cells know their heads, so that a line can be stacked; roles, as CSS takes them. */
  function headed(table) {
    if ("headed" in table.dataset) return table.dataset.headed === "yes";
    const rows = all("tr", table), heads = all("thead th, thead td", table).map((e) => e.textContent.trim());
    const plain = all("thead tr", table).length === 1 && rows.every((row) => row.cells.length === heads.length);
    table.dataset.headed = plain ? "yes" : "no";
    if (!plain) return false;
    table.setAttribute("role", "table");
    all("thead, tbody", table).forEach((e) => e.setAttribute("role", "rowgroup"));
    rows.forEach((row) => {
      row.setAttribute("role", "row");
      [...row.cells].forEach((cell, i) => {
        cell.setAttribute("role", cell.closest("thead") ? "columnheader" : i ? "cell" : "rowheader");
        if (!cell.closest("thead")) cell.dataset.head = heads[i];
      });
    });
    return true;
  }

  /* ---- what the theme's pages lack for screen readers ---- */

  function readable() {
    const hidden = ["details > summary", "button.theme-switch-button", "button.search-button-field"];
    all(hidden.map((s) => `${s}[aria-label]`).join()).forEach((e) => { if (e.textContent.trim()) e.removeAttribute("aria-label"); });
    all("summary:has(.toctree-toggle)").forEach((e) => e.setAttribute("aria-label", `Pages of ${e.closest("li").querySelector("a").textContent.trim()}`));
    all(".theme-switch-button").forEach((e) => { e.title = "Color mode"; });
    all(".citation-list, .citation[role]").forEach((e) => e.removeAttribute("role"));
    all("th:empty").forEach((e) => { e.outerHTML = "<td></td>"; });
  }

  /* ---- search: excerpts of the prose; from a file there are none, as no script may read a page ---- */

  function search() {
    if (typeof Search === "undefined") return;
    const plain = Search.htmlToText;
    Search.htmlToText = (text, anchor) => {
      const page = new DOMParser().parseFromString(text, "text/html");
      all(".cell_input, .highlight", page).forEach((e) => e.remove());
      return plain(page.documentElement.outerHTML, anchor);
    };
  }

  /* ---- paper: everything open, nothing scrolls ---- */

  function print() {
    let opened = [];
    addEventListener("beforeprint", () => {
      opened = all("article details.sd-dropdown:not([open])");
      opened.forEach((e) => { e.open = true; });
    });
    addEventListener("afterprint", () => opened.forEach((e) => { e.open = false; }));
  }

  /* ---- explorers ---- */

  const orelse = (x, y) => Number.isNaN(x) ? y : x;
  const powers = (c, k) => { let sum = 0; for (let i = 0; i < k; i++) sum = sum * c + 1; return sum; };
  const number = (x) => !Number.isFinite(x) ? "∞" : x >= 1000 ? x.toFixed(0) : String(Number(x.toPrecision(3)));
  const SCALES = { // position on a slider of 0..most to value, and back
    linear: ({ least, most }) => ({ to: (i) => least + (most - least) * i / 200, from: (v) => 200 * (v - least) / (most - least), most: 200 }),
    log: ({ least, most }) => ({ to: (i) => least * (most / least) ** (i / 200), from: (v) => 200 * Math.log(v / least) / Math.log(most / least), most: 200 }),
    whole: ({ least, most }) => ({ to: (i) => least + i, from: (v) => v - least, most: most - least }),
    support: ({ least, most }) => { // each place another number: one by one, then by a share
      const to = (i) => i >= 200 ? Infinity : Math.max(least + i, Math.round(least * (most / least) ** (i / 199)));
      return { to, from: (v) => { let i = 0; while (to(i) < v) i++; return i; }, most: 200 };
    },
  };

  function explorer(box) {
    const spec = JSON.parse(box.querySelector("script").textContent);
    const names = Object.keys(spec.knobs), scales = names.map((name) => SCALES[spec.knobs[name].scale](spec.knobs[name]));
    const read = (v) => v === "inf" ? Infinity : v;
    const start = Object.fromEntries(names.map((name) => [name, read(spec.knobs[name].start)]));
    const body = spec.program.map(([name, code]) => `const ${name} = ${code};`).join("\n");
    const run = new Function("orelse", "powers", ...names, `${body}\nreturn {${spec.program.map(([name]) => name)}};`);
    const inside = (values) => names.map((name) => spec.knobs[name].scale === "support" ? 1 / values[name] : values[name]);
    const evaluate = (values) => run(orelse, powers, ...inside({ ...start, ...values }));
    const view = VIEWS[spec.view];

    box.insertAdjacentHTML("beforeend", `
      <p class="presets" role="group" aria-label="Presets">${Object.keys(spec.presets).map((title) =>
        `<button type="button">${title}</button>`).join(" ")} <button type="button" class="reset">reset</button></p>
      <div class="pictures">${view.pictures(box.id)}</div>
      <dl class="readout"></dl><p class="said" role="status"></p>
      <div class="knobs">${names.map((name, i) => `<div class="knob"><label for="${box.id}-${name}">${spec.knobs[name].name}</label>
        <input type="range" id="${box.id}-${name}" min="0" max="${scales[i].most}" step="1"><output for="${box.id}-${name}"></output></div>`).join("")}</div>`);
    const inputs = all("input", box);
    let values = { ...start }, timer = 0;

    function draw() {
      const found = evaluate(values);
      view.draw(box, values, found, evaluate, spec);
      box.querySelector(".readout").innerHTML = view.readout(found).map(([what, value]) => `<div><dt>${what}</dt><dd>${value}</dd></div>`).join("");
      names.forEach((name, i) => {
        const input = inputs[i];
        if (document.activeElement !== input) input.value = Math.round(scales[i].from(values[name]));
        input.setAttribute("aria-valuetext", number(values[name]));
        input.nextElementSibling.textContent = number(values[name]);
      });
      clearTimeout(timer); // a screen reader hears where the knobs rest, not the way there
      box.dataset.settled = "no";
      timer = setTimeout(() => { box.querySelector(".said").textContent = view.said(found); remember(); box.dataset.settled = "yes"; }, 300);
      box.dataset.values = JSON.stringify(names.map((name) => number(values[name])));
    }

    function remember() {
      const address = new URL(location.href);
      const moved = names.filter((name) => values[name] !== start[name]);
      if (moved.length) address.searchParams.set(box.id, moved.map((name) => `${name}:${values[name] === Infinity ? "inf" : values[name]}`).join());
      else address.searchParams.delete(box.id);
      if (address.href !== location.href) try { history.replaceState(null, "", address); } catch { /* a page from a file */ }
    }

    function recall() {
      for (const pair of (new URL(location.href).searchParams.get(box.id) ?? "").split(",")) {
        const [name, text] = pair.split(":"), knob = spec.knobs[name];
        const value = text === "inf" ? Infinity : Number(text);
        if (knob && text && (value >= knob.least && value <= knob.most || value === Infinity && knob.scale === "support")) values[name] = value;
      }
    }

    names.forEach((name, i) => inputs[i].addEventListener("input", () => {
      values[name] = scales[i].to(inputs[i].valueAsNumber);
      draw();
    }));
    all(".presets button", box).forEach((button) => button.addEventListener("click", () => {
      const chosen = spec.presets[button.textContent] ?? {};
      values = { ...start, ...Object.fromEntries(Object.entries(chosen).map(([name, v]) => [name, read(v)])) };
      draw();
    }));
    box.evaluate = evaluate;
    recall();
    draw();
  }

  /* A picture of 480 by `height` with axes that do not move: functions from values to places. */
  function frame(height, x, y) {
    const [left, right, top, bottom] = [52, 12, 14, 44];
    const along = (v, { least, most, log }) => log ? Math.log(v / least) / Math.log(most / least) : (v - least) / (most - least);
    const clip = (t) => Math.min(Math.max(t, 0), 1);
    const X = (v) => left + (480 - left - right) * clip(along(v, x)), Y = (v) => height - bottom - (height - bottom - top) * clip(along(v, y));
    const axes = `<path d="M${left},${top}V${height - bottom}H${480 - right}" class="axis"/>` +
      x.ticks.map((v) => `<text x="${X(v)}" y="${height - bottom + 18}" text-anchor="middle">${v}</text>`).join("") +
      y.ticks.map((v) => `<text x="${left - 6}" y="${Y(v) + 5}" text-anchor="end">${v}</text>`).join("") +
      `<text x="${(left + 480 - right) / 2}" y="${height - 6}" text-anchor="middle">${x.name}</text>`;
    return { X, Y, axes, left, right: 480 - right, top, bottom: height - bottom };
  }
  const picture = (id, part, height, title) => `<svg viewBox="0 0 480 ${height}" role="img" aria-labelledby="${id}-${part}-title" class="${part}"><title id="${id}-${part}-title">${title}</title><g></g></svg>`;
  const line = (points) => `M${points.map(([x, y]) => `${x.toFixed(2)},${y.toFixed(2)}`).join("L")}`;

  const VIEWS = {
    mixture: {
      pictures: (id) => picture(id, "plane", 210, "The two groups of optima, where NAL and MAML settle, and where the mean inner steps lead from there") +
        picture(id, "curve", 300, "The ratio of risks and its ceiling against the inner step"),
      draw(box, values, found, evaluate, spec) {
        const { least, most } = spec.knobs.alpha, unit = 480 / 11, at = (w) => Math.min(Math.max((w + 3) * unit, 4), 476);
        const R = values.R, rows = [["NAL", "nal", found.l_N * R, 44], ["MAML", "maml", found.l_M * R, 82]];
        const arrow = (kind, from, to, y) => `<path class="${kind}" d="M${at(from)},${y}H${at(to)}"/><circle class="${kind}" cx="${at(to)}" cy="${y}" r="4"/>`;
        box.querySelector(".plane g").innerHTML =
          [["easy", R, values.v_E], ["hard", 0, values.v_H]].map(([kind, centre, v]) =>
            `<circle class="group ${kind}" cx="${at(centre)}" cy="132" r="${Math.max(Math.sqrt(v) * unit, 2).toFixed(2)}"/><path class="guide" d="M${at(centre)},20V195"/>`).join("") +
          rows.map(([name, kind, w, y]) => `<text x="4" y="${y + 5}">${name}</text>${arrow("easy", w, R - found.keep_E * (R - w), y)}${arrow("hard", w, found.keep_H * w, y)}<rect class="${kind}" x="${at(w) - 6}" y="${y - 6}" width="12" height="12"/>`).join("") +
          `<text x="${at(0)}" y="15" text-anchor="middle">hard</text>${R > 0.9 ? `<text x="${at(R)}" y="15" text-anchor="middle">easy</text>` : ""}<text x="476" y="204" text-anchor="end">places on the line of the two centres</text>`;
        const f = frame(300, { least, most, ticks: [least, (least + most) / 2, most], name: "inner step α" }, { least: 1, most: 100, log: true, ticks: [1, 2, 5, 10, 20, 50, 100] });
        const steps = Array.from({ length: 241 }, (_, i) => least + (most - least) * i / 240).map((alpha) => [alpha, evaluate({ ...values, alpha })]);
        box.querySelector(".curve g").innerHTML = f.axes +
          `<path class="ceiling" d="${line(steps.map(([a, r]) => [f.X(a), f.Y(r.ceiling)]))}"/>` +
          (found.alpha_0 <= most ? `<path class="guide" d="M${f.X(found.alpha_0)},${f.top}V${f.bottom}"/><text x="${f.X(found.alpha_0) - 4}" y="${f.top + 12}" text-anchor="end">α₀</text>` : "") +
          `<path class="maml" d="${line(steps.map(([a, r]) => [f.X(a), f.Y(r.ratio)]))}"/>` +
          `<circle class="here" cx="${f.X(values.alpha)}" cy="${f.Y(found.ratio)}" r="6"/><text x="${f.left + 8}" y="${f.top + 12}">risk NAL / MAML;</text><text x="${f.left + 8}" y="${f.top + 31}">dashed: the ceiling</text>`;
      },
      readout: (r) => [["risk NAL / MAML", number(r.ratio)], ["ceiling", number(r.ceiling)], ["hardness spread h", number(r.h)], ["α₀, equal hardness", number(r.alpha_0)], ["NAL's weight on the easy centre", number(r.l_N)], ["MAML's", number(r.l_M)]],
      said: (r) => `The risk of NAL is ${number(r.ratio)} times that of MAML, both after adaptation. With a hardness spread of ${number(r.h)} it could be at most ${number(r.ceiling)} times.`,
    },
    preconditioner: {
      pictures: (id) => picture(id, "steps", 230, "How long the step is along each of two directions: one rate, whitening, the best preconditioner") +
        picture(id, "left", 230, "The share of the risk that each step leaves"),
      draw(box, values, found) {
        const kinds = [["one rate", "nal", [found.rate, found.rate], found.left_rate], ["whitening", "easy", [found.W_1, found.W_2], found.left_white], ["best P", "maml", [found.P_1, found.P_2], found.left_full]];
        const f = frame(230, { least: 0.01, most: 100, log: true, ticks: [0.01, 0.1, 1, 10, 100], name: "length of the step per unit of gradient" }, { least: 0, most: 1, ticks: [] });
        const rows = [["direction 1", 40], ["direction 2", 120]];
        box.querySelector(".steps g").innerHTML = f.axes + rows.map(([name, y], which) => `<text x="${f.left + 8}" y="${y - 8}">${name}</text>` +
          kinds.map(([, kind, step], i) => `<path class="guide" d="M${f.left},${y + 6 + 16 * i}H${f.right}"/><circle class="${kind} dot" cx="${f.X(step[which])}" cy="${y + 6 + 16 * i}" r="6"/>`).join("")).join("");
        const g = frame(230, { least: 0, most: 1, ticks: [0, 0.5, 1], name: "share of the risk that is left" }, { least: 0, most: 1, ticks: [] });
        box.querySelector(".left g").innerHTML = g.axes + kinds.map(([name, kind, , left], i) => {
          const y = 30 + 52 * i;
          return `<text x="${g.left + 8}" y="${y}">${name}: ${number(left)}</text><rect class="${kind} bar" x="${g.left}" y="${y + 6}" height="16" width="${(g.X(left) - g.left).toFixed(2)}"/>`;
        }).join("");
      },
      readout: (r) => [["one rate leaves", number(r.left_rate)], ["whitening leaves", number(r.left_white)], ["the best P leaves", number(r.left_full)], ["risk of one rate / of P", number(r.left_rate / r.left_full)]],
      said: (r) => `One rate leaves ${number(r.left_rate)} of the risk, whitening ${number(r.left_white)}, and the best preconditioner ${number(r.left_full)}.`,
    },
  };

  const start = () => {
    readable();
    all(".book-explorer").forEach(explorer);
    print();
    search();
    fit();
    requestAnimationFrame(() => setTimeout(typeset));
    let width = innerWidth;
    addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; fit(); } });
    let waiting = false; // what was folded had no width
    document.addEventListener("toggle", () => {
      if (!waiting) requestAnimationFrame(() => { waiting = false; fit(); });
      waiting = true;
    }, true);
  };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start); else start();
})();
