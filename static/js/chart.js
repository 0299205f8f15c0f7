/* Line charts. <div class="chart" data-chart data-url="..." data-label="Loss" [data-poll="5"]>
   The answer: {x: [...], series: [{label, values: [number|null, ...], dash?, colour?}], x_label, y_label}; dash is true or
   lengths, colour 1 to 6.
   Follows the theme and the width of its box; data-poll asks again every so many seconds while the page is visible
   and stops when the answer says {"finished": true}. A table of the same numbers is folded under every chart. */

import { NoAnswer, json } from "./server.js";

const MOST_ROWS = 200;
const DASHES = [null, [7, 4], [2, 3]];

const colour = (name) => getComputedStyle(document.body).getPropertyValue(name).trim();
const short = (value) => (value === null || value === undefined ? "–" : String(Number(value.toPrecision(4))));

function axes(data) {
  const font = `12px ${getComputedStyle(document.body).fontFamily}`;
  const look = {
    stroke: colour("--secondary"), font, labelFont: font,
    grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line"), width: 1 },
  };
  return [
    { ...look, label: data.x_label, labelSize: 22, size: 34 },
    { ...look, label: data.y_label, labelSize: 22, size: 56, values: (_, ticks) => ticks.map((t) => (t === null ? "" : short(t))) },
  ];
}

function seriesLook(data) {
  const lines = data.series.map((line, index) => ({
    label: line.label,
    stroke: colour(`--series-${line.colour || (index % 6) + 1}`),
    width: 1.75,
    dash: line.dash === true ? DASHES[1] : line.dash || DASHES[Math.floor(index / 6) % DASHES.length] || undefined,
    spanGaps: true,
    points: { show: data.x.length <= 40, size: 5 },
    value: (_, value) => short(value),
  }));
  return [{ label: data.x_label || "x", value: (_, value) => short(value) }, ...lines];
}

function options(box, data) {
  return {
    width: Math.max(200, box.clientWidth),
    height: Math.max(140, (Number.parseFloat(getComputedStyle(box).minHeight) || 240) - 32),
    scales: { x: { time: false } },
    axes: axes(data),
    series: seriesLook(data),
    cursor: { drag: { x: true, y: false }, points: { size: 7 } },
    legend: { live: true, markers: { width: 0, fill: (plot, index) => plot.series[index].stroke(plot, index) } },
  };
}

function summary(box, data) {
  const last = data.series.map((line) => `${line.label} ${short(line.values.findLast((v) => v !== null && v !== undefined))}`);
  return `${box.dataset.label || data.y_label || "Chart"} against ${data.x_label || "x"}, last values: ${last.join(", ")}`;
}

function cell(tag, text, className) {
  const element = document.createElement(tag);
  element.textContent = text;
  element.className = className;
  return element;
}

function fillTable(table, data) {
  const head = document.createElement("tr");
  for (const label of [data.x_label || "x", ...data.series.map((line) => line.label)]) head.append(cell("th", label, "num"));
  const every = Math.max(1, Math.ceil(data.x.length / MOST_ROWS));
  const rows = [head];
  for (let i = 0; i < data.x.length; i += every) {
    const row = document.createElement("tr");
    row.append(cell("td", short(data.x[i]), "num"), ...data.series.map((line) => cell("td", short(line.values[i]), "num")));
    rows.push(row);
  }
  table.replaceChildren(...rows);
}

function addTable(box) {
  const fold = document.createElement("details");
  fold.className = "fold";
  const scroll = document.createElement("div");
  scroll.className = "table-scroll log";
  scroll.tabIndex = 0;
  const table = cell("table", "", "table");
  scroll.append(table);
  fold.append(cell("summary", "Numbers", "small"), scroll);
  box.after(fold);
  return { fold, table };
}

class Chart {
  constructor(box, uPlot) {
    Object.assign(this, { box, uPlot, plot: null, data: null, shape: "" });
    const { fold, table } = addTable(box);
    fold.addEventListener("toggle", () => { if (fold.open && this.data) fillTable(table, this.data); });
    this.refillTable = () => { if (fold.open) fillTable(table, this.data); };
    new ResizeObserver(() => this.fit()).observe(box);
    document.addEventListener("medsyn:theme", () => this.draw());
  }

  note(text) {
    this.plot?.destroy();
    this.plot = null;
    this.box.replaceChildren(cell("p", text, "chart-note"));
  }

  take(data) {
    this.data = data;
    if (!data.x?.length) return this.note("No values yet.");
    const shape = JSON.stringify(data.series.map((line) => line.label));
    const columns = [data.x, ...data.series.map((line) => line.values)];
    if (this.plot && shape === this.shape && data.x.length > 40) this.plot.setData(columns);
    else this.draw();
    this.shape = shape;
    this.box.setAttribute("role", "img");
    this.box.setAttribute("aria-label", summary(this.box, data));
    this.refillTable();
  }

  draw() {
    if (!this.data?.x?.length) return;
    this.plot?.destroy();
    this.box.replaceChildren();
    const columns = [this.data.x, ...this.data.series.map((line) => line.values)];
    this.plot = new this.uPlot(options(this.box, this.data), columns, this.box);
  }

  fit() {
    const width = Math.max(200, this.box.clientWidth);
    if (this.plot && Math.abs(width - this.plot.width) > 1) this.plot.setSize({ width, height: this.plot.height });
  }
}

function keepFresh(chart) {
  const seconds = Number.parseFloat(chart.box.dataset.poll);
  const remedy = seconds > 0 ? "Trying again." : "Reload the page to try again.";
  const step = async () => {
    let data = null;
    if (!document.hidden || chart.data === null) {
      try {
        data = await json(chart.box.dataset.url);
      } catch (error) {
        if (!(error instanceof NoAnswer)) throw error;
        if (chart.data === null) chart.note(`No curve: ${error.message}. ${remedy}`);
      }
    }
    if (data) chart.take(data);
    if (seconds > 0 && !data?.finished) setTimeout(step, seconds * 1000);
  };
  step();
}

async function drawCharts(boxes) {
  const { default: uPlot } = await import("../vendor/uplot-1.6.32/uPlot.esm.js"); // only where there is something to draw
  for (const box of boxes) keepFresh(new Chart(box, uPlot));
}

const boxes = document.querySelectorAll("[data-chart]");
if (boxes.length) {
  drawCharts(boxes).catch((error) => {
    for (const box of boxes) box.replaceChildren(cell("p", "Charts cannot be drawn: a part of the page is missing. Reload it.", "chart-note"));
    throw error;
  });
}
