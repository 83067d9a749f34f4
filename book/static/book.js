/* Draws the book's formulas with sliders, and mends what the theme's pages lack for screen readers. */
(() => {
  const SVG = { width: 600, height: 300, left: 46, right: 12, top: 14, bottom: 44, points: 200 };

  function sliders(box) {
    const spec = JSON.parse(box.querySelector("script").textContent);
    const f = new Function(...spec.args, `return (${spec.js});`);
    const [low, high, axis] = spec.x;
    const { width, height, left, right, top, bottom, points } = SVG;
    const controls = spec.knobs.map(([least, most, start, name], i) => `
      <div class="knob"><label for="${box.id}-${i}">${name}</label>
      <input type="range" id="${box.id}-${i}" min="${least}" max="${most}" step="${(most - least) / 200}" value="${start}">
      <output for="${box.id}-${i}"></output></div>`).join("");
    box.insertAdjacentHTML("beforeend", `${controls}
      <svg viewBox="0 0 ${width} ${height}" role="img" aria-labelledby="${box.id}-title">
        <title id="${box.id}-title"></title>
        <path d="M${left},${top}V${height - bottom}H${width - right}" fill="none" stroke="currentColor"/>
        <path class="one" fill="none" stroke="currentColor" stroke-dasharray="4 4" opacity="0.6"/>
        <path class="curve" fill="none" stroke-width="2.5"/>
        <g class="ticks" fill="currentColor" font-size="15"></g>
      </svg>`);
    const inputs = [...box.querySelectorAll("input")];
    const xs = Array.from({ length: points + 1 }, (_, i) => low + (high - low) * i / points);
    const draw = () => {
      const values = inputs.map((input) => input.valueAsNumber);
      const ys = xs.map((x) => f(x, ...values));
      const peak = Math.max(1.2, ...ys.filter(Number.isFinite));
      const X = (x) => left + (width - left - right) * (x - low) / (high - low);
      const Y = (y) => height - bottom - (height - bottom - top) * (y - 1) / (peak - 1);
      const path = xs.map((x, i) => `${X(x).toFixed(2)},${Y(ys[i]).toFixed(2)}`).join("L");
      box.querySelector(".curve").setAttribute("d", `M${path}`);
      box.querySelector(".one").setAttribute("d", `M${left},${Y(1)}H${width - right}`);
      const middle = (low + high) / 2;
      box.querySelector(".ticks").innerHTML =
        [low, middle, high].map((x) => `<text x="${X(x)}" y="${height - bottom + 18}" text-anchor="middle">${x}</text>`).join("") +
        [1, peak].map((y) => `<text x="${left - 5}" y="${Y(y) + 5}" text-anchor="end">${y.toPrecision(2)}</text>`).join("") +
        `<text x="${(left + width - right) / 2}" y="${height - 5}" text-anchor="middle">${axis}</text>`;
      box.querySelectorAll("output").forEach((out, i) => { out.textContent = values[i].toPrecision(3); });
      box.querySelector("title").textContent =
        `${spec.label} against ${axis}; its greatest value here is ${peak.toPrecision(3)}`;
      box.dataset.knobs = JSON.stringify(values);
      box.dataset.y = JSON.stringify(ys);
    };
    inputs.forEach((input) => input.addEventListener("input", draw));
    draw();
  }

  /* Names that hide the visible text, lists whose items have another role, table corners without a heading. */
  function readable() {
    const hidden = ["details > summary", "button.theme-switch-button", "button.search-button-field"];
    document.querySelectorAll(hidden.map((s) => `${s}[aria-label]`).join()).forEach((e) => e.removeAttribute("aria-label"));
    document.querySelectorAll(".theme-switch-button").forEach((e) => { e.title = "Color mode"; });
    document.querySelectorAll(".citation-list, .citation[role]").forEach((e) => e.removeAttribute("role"));
    document.querySelectorAll("th:empty").forEach((e) => { e.outerHTML = "<td></td>"; });
    document.querySelectorAll("pre, .output, mjx-container[display]").forEach((e) => {
      if (e.scrollWidth > e.clientWidth) e.tabIndex = 0;
    });
  }

  const start = () => { readable(); document.querySelectorAll(".book-sliders").forEach(sliders); };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start); else start();
})();
