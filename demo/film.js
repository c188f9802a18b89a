// A film that is looked at as on a workstation; everything is drawn here, in the browser. Its data (demo/film.py):
// key, images: [{src, alt}] of one patient, the case's own first, map: {src, alt, on} or none.
// Left drag: window and level; wheel: zoom; right drag, or left after "Drag pans": pan. Another key resets all of it.
export default function film({ parentElement, data }) {
  const last = parentElement.film;
  last?.release();
  const before = last?.key === data.key ? last.state : {};
  const state = { ...START, opacity: 0, shown: 0, ...before };
  if (data.map && !before.mapped) state.opacity = data.map.on ? 0.5 : 0;
  state.mapped = Boolean(data.map);
  const id = `levels-${NUMBER++}`;
  parentElement.querySelector(":scope > img")?.remove(); // what stands there where no script runs
  const root = parentElement.appendChild(document.createElement("div"));
  root.className = "film";
  root.innerHTML = `<div class="glass" tabindex="0" role="img">
    <div class="layers"><img class="image" alt=""><img class="map" alt="" hidden></div></div>
    <svg width="0" height="0" style="position: absolute" aria-hidden="true"><filter id="${id}" color-interpolation-filters="sRGB">
    <feComponentTransfer>${["R", "G", "B"].map((c) => `<feFunc${c} type="linear"/>`).join("")}
    </feComponentTransfer></filter></svg>
    <div class="tools">${TOOLS.map(([name, words, key]) =>
      `<button type="button" data-does="${name}" aria-keyshortcuts="${key}" title="Key ${key}">${words}</button>`).join("")}
    <span class="levels"></span></div>
    <div class="others"></div>
    <details><summary>Mouse and keys</summary><p>${HELP}</p></details>`;
  const at = (selector) => root.querySelector(selector);
  const [glass, layers, image, map, levels] = [".glass", ".layers", ".image", ".map", ".levels"].map(at);
  image.style.filter = `url(#${id})`;
  if (data.map) {
    map.src = data.map.src;
    at(".tools").insertAdjacentHTML("afterend", `<label class="opacity">Map <input type="range" min="0" max="100"
      step="5" aria-label="Opacity of the map" title="Key M"><output></output></label>`);
  }
  data.images.slice(0, data.images.length > 1 ? undefined : 0).forEach((one, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.innerHTML = `<img src="${one.src}" alt="">`;
    button.append(place ? `${place + 1}` : "this case");
    button.setAttribute("aria-label", place ? `Other image ${place} of this patient` : "The image of this case");
    button.onclick = () => show({ shown: place });
    at(".others").append(button);
  });

  function show(changes = {}) {
    Object.assign(state, changes);
    const { window, level, invert, zoom, x, y, shown, opacity, pans } = state;
    const own = shown === 0;
    if (image.getAttribute("src") !== data.images[shown].src) image.src = data.images[shown].src;
    // what is seen of a value v in [0, 255]: (v - level) / window + 1/2, or 1 minus that
    const slope = 255 / window, intercept = 0.5 - level / window;
    for (const each of root.querySelectorAll("filter feComponentTransfer > *")) {
      each.setAttribute("slope", invert ? -slope : slope);
      each.setAttribute("intercept", invert ? 1 - intercept : intercept);
    }
    layers.style.transform = `translate(${x * 100}%, ${y * 100}%) scale(${zoom})`;
    map.hidden = !data.map || !own || opacity === 0;
    map.style.opacity = opacity;
    glass.setAttribute("aria-label", data.images[shown].alt + (map.hidden ? "" : ` ${data.map.alt}`));
    glass.classList.toggle("grabs", zoom > 1 || pans);
    levels.textContent = `W ${window.toFixed(0)} L ${level.toFixed(0)} · ${zoom.toFixed(1)}×`;
    at("[data-does=invert]").setAttribute("aria-pressed", invert);
    at("[data-does=pans]").setAttribute("aria-pressed", pans);
    if (data.map) {
      at(".opacity input").value = 100 * opacity;
      at(".opacity output").textContent = own ? `${Math.round(100 * opacity)} %` : "of this case alone";
    }
    [...at(".others").children].forEach((each, place) => each.setAttribute("aria-pressed", place === shown));
  }
  function zoomTo(zoom, px = 0, py = 0) { // px, py: what stays in place, from the middle, in sides of the glass
    zoom = Math.min(8, Math.max(1, zoom));
    const more = zoom / state.zoom;
    pan(px + (state.x - px) * more, py + (state.y - py) * more, zoom);
  }
  function pan(x, y, zoom = state.zoom) {
    const most = (zoom - 1) / 2;
    show({ zoom, x: Math.min(most, Math.max(-most, x)), y: Math.min(most, Math.max(-most, y)) });
  }
  function turn(window, level) {
    show({ window: Math.min(510, Math.max(4, state.window + window)), level: Math.min(255, Math.max(0, state.level + level)) });
  }
  const does = {
    invert: () => show({ invert: !state.invert }),
    closer: () => zoomTo(state.zoom * 1.25),
    farther: () => zoomTo(state.zoom / 1.25),
    pans: () => show({ pans: !state.pans }),
    reset: () => show({ ...START, shown: 0 }),
  };
  for (const [name, act] of Object.entries(does)) at(`[data-does=${name}]`).onclick = act;

  let drag = null;
  glass.onpointerdown = (event) => {
    if (event.button > 2) return;
    event.preventDefault(); // no focus, so that the keys stay what they are
    drag = { x: event.clientX, y: event.clientY, pans: event.button > 0 || state.pans };
    glass.setPointerCapture(event.pointerId);
  };
  glass.onpointermove = (event) => {
    if (!drag) return;
    const [dx, dy] = [event.clientX - drag.x, event.clientY - drag.y].map((d) => d / glass.clientWidth);
    [drag.x, drag.y] = [event.clientX, event.clientY];
    if (drag.pans) pan(state.x + dx, state.y + dy);
    else turn(510 * dx, -255 * dy);
  };
  glass.onpointerup = glass.onpointercancel = () => (drag = null);
  glass.oncontextmenu = (event) => event.preventDefault();
  glass.addEventListener("wheel", (event) => {
    event.preventDefault();
    const box = glass.getBoundingClientRect();
    const [px, py] = [(event.clientX - box.x) / box.width - 0.5, (event.clientY - box.y) / box.height - 0.5];
    zoomTo(state.zoom * Math.exp(-event.deltaY / 400), px, py);
  }, { passive: false });

  const slider = at(".opacity input");
  if (slider) {
    slider.oninput = () => show({ opacity: slider.value / 100 });
    slider.onpointerup = () => slider.blur(); // or the arrow keys, which turn pages, would move it
    slider.onkeydown = (event) => event.key.startsWith("Arrow") && !event.shiftKey && event.stopPropagation();
  }
  const keys = {
    i: does.invert, "+": does.closer, "=": does.closer, "-": does.farther, 0: does.reset, p: does.pans,
    m: () => data.map && show({ opacity: state.opacity ? 0 : 0.5 }),
    o: () => show({ shown: (state.shown + 1) % data.images.length }),
    w: () => pan(state.x, state.y + 0.1), s: () => pan(state.x, state.y - 0.1),
    a: () => pan(state.x + 0.1, state.y), d: () => pan(state.x - 0.1, state.y),
    "Shift+ArrowLeft": () => turn(-16, 0), "Shift+ArrowRight": () => turn(16, 0),
    "Shift+ArrowUp": () => turn(0, 8), "Shift+ArrowDown": () => turn(0, -8),
  };
  const press = (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest?.("input:not([type=range]), textarea, select, [role=combobox]")) return;
    const act = keys[(event.key.startsWith("Arrow") && event.shiftKey ? "Shift+" : "") + event.key.replace(/^[A-Z]$/, (c) => c.toLowerCase())];
    if (!act) return;
    event.preventDefault();
    act();
  };
  document.addEventListener("keydown", press);
  const release = () => {
    document.removeEventListener("keydown", press);
    root.remove();
  };
  parentElement.film = { key: data.key, state, release };
  show();
  return release;
}

let NUMBER = 0;
const START = { window: 255, level: 127.5, invert: false, zoom: 1, x: 0, y: 0, pans: false };
const TOOLS = [["invert", "Invert", "I"], ["farther", "−", "-"], ["closer", "+", "+"], ["pans", "Drag pans", "P"], ["reset", "Reset", "0"]];
const HELP = "Drag: window (across) and level (up and down). Wheel: zoom. Right drag: pan. Keys: I invert, + and − zoom," +
  " W A S D pan, Shift and arrows window and level, 0 reset, M map, O the patient's other images, ← → other cases.";
