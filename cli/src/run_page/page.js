// Says the numbers under the pointer, and moves the map of loads through the run. The page is complete without it.
const spoken = JSON.parse(document.getElementById("spoken").textContent);
const whole = (count) => count.toLocaleString("en-US");

// A line or a frame at a place of `canvas`, and words beside it.
function teller(canvas, isCell) {
  const pointer = document.createElement("div");
  const says = document.createElement("div");
  pointer.className = isCell ? "pointer cell" : "pointer";
  says.className = "says";
  pointer.hidden = says.hidden = true;
  canvas.append(pointer, says);
  return {
    hide() { pointer.hidden = says.hidden = true; },
    show(box, lines) {
      pointer.hidden = says.hidden = false;
      pointer.style.left = `${box.left}px`;
      if (isCell) Object.assign(pointer.style, { top: `${box.top}px`, width: `${box.width}px`, height: `${box.height}px` });
      says.replaceChildren(...lines.flatMap((line, index) => (index ? [document.createElement("br"), line] : [line])));
      const left = Math.min(Math.max(box.left - says.offsetWidth / 2, 0), canvas.clientWidth - says.offsetWidth);
      says.style.left = `${Math.max(left, 0)}px`;
      says.style.top = isCell ? `${box.top > says.offsetHeight + 8 ? box.top - says.offsetHeight - 8 : box.top + box.height + 8}px` : "2px";
    },
  };
}

// Calls `at` with the place of the pointer, and `hide` when it leaves.
function follow(canvas, at, hide) {
  const move = (event) => {
    const box = canvas.getBoundingClientRect();
    at(event.clientX - box.left, event.clientY - box.top);
  };
  canvas.addEventListener("pointermove", move);
  canvas.addEventListener("pointerdown", move);
  canvas.addEventListener("pointerleave", hide);
  canvas.addEventListener("blur", hide);
}

for (const canvas of document.querySelectorAll("[data-plot]")) {
  const curve = spoken.curves[canvas.dataset.plot];
  if (!curve || !curve.steps.length) continue;
  const tell = teller(canvas, false);
  const span = Math.max(curve.last - curve.first, 1);
  let shown = curve.steps.length - 1;
  const show = (index) => {
    shown = index;
    const step = curve.steps[index];
    const lines = [`step ${whole(step)}`, ...curve.series.map((series) => `${series.name} ${series.values[index]}`)];
    const before = index ? curve.steps[index - 1] : -1;
    for (const [marked, value] of curve.marks ? curve.marks.values : []) {
      if (marked > before && marked <= step) lines.push(`${curve.marks.name} ${value}`);
    }
    tell.show({ left: ((step - curve.first) / span) * canvas.clientWidth }, lines);
  };
  follow(canvas, (x) => {
    const step = curve.first + (x / canvas.clientWidth) * span;
    let [low, high] = [0, curve.steps.length - 1];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (curve.steps[middle] < step) low = middle + 1;
      else high = middle;
    }
    if (low > 0 && step - curve.steps[low - 1] < curve.steps[low] - step) low -= 1;
    show(low);
  }, tell.hide);
  canvas.tabIndex = 0;
  canvas.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    show(Math.min(Math.max(shown + by, 0), curve.steps.length - 1));
  });
}

const routing = spoken.routing;
if (routing) {
  let report = routing.steps.length - 1;
  // Doublings over an even load; nothing for an expert without tokens.
  const doublings = (layer, expert) => {
    const letter = routing.alphabet.indexOf(routing.load[report][layer * routing.experts + expert]);
    return letter ? (letter - 1) / routing.lettersOfDoubling - routing.doublings : null;
  };
  const cells = (canvas, columns, words) => {
    const tell = teller(canvas, true);
    follow(canvas, (x, y) => {
      const width = canvas.clientWidth / columns;
      const height = canvas.clientHeight / routing.layers;
      const column = Math.min(Math.max(Math.floor(x / width), 0), columns - 1);
      const row = Math.min(Math.max(Math.floor(y / height), 0), routing.layers - 1);
      tell.show({ left: column * width, top: row * height, width, height }, words(column, row));
    }, tell.hide);
  };

  const map = document.querySelector('[data-map="load"]');
  cells(map, routing.experts, (expert, layer) => {
    const times = doublings(layer, expert);
    const load = times === null ? "no token" : `about ${Number((2 ** times).toPrecision(2))} times the even ${routing.even}`;
    return [`layer ${layer}, expert ${expert}`, load];
  });
  const paths = [...map.querySelectorAll("path")];
  const draw = () => {
    const levels = paths.map(() => "");
    for (let layer = 0; layer < routing.layers; layer += 1) {
      for (let expert = 0; expert < routing.experts; expert += 1) {
        const times = doublings(layer, expert);
        const level = times === null ? 0 : Math.min(Math.max(Math.round(times * 2 + 7), 1), 13);
        levels[level] += `M${expert} ${layer}h1v1h-1z`;
      }
    }
    paths.forEach((path, level) => path.setAttribute("d", levels[level]));
  };
  const slider = document.querySelector(".slider");
  if (routing.steps.length > 1) {
    slider.hidden = false;
    slider.querySelector("input").addEventListener("input", (event) => {
      report = Number(event.target.value);
      slider.querySelector("output").textContent = whole(routing.steps[report]);
      draw();
    });
  }

  cells(document.querySelector('[data-map="entropy"]'), routing.steps.length, (column, layer) => [
    `layer ${layer}, step ${whole(routing.steps[column])}`,
    `${routing.entropy[column][layer]} of ${routing.evenEntropy} nats`,
  ]);
}
