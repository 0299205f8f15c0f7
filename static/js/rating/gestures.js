/* Mouse, pen and fingers on the image. Left button or one finger: window; middle button: move; right button or wheel:
   zoom about the point; two fingers: move and zoom; two taps: reset. */

const STILL = 4; // CSS pixels that a press may wander before it is a drag
const TAP_MS = 300; // that a tap takes at most, and that lie between two of them
const TAPS_APART = 30; // CSS pixels
const ZOOM_DRAG = 200; // CSS pixels of a right drag that enlarge e times
const WHEEL = 400; // the same of a wheel
const LINE = 16; // CSS pixels of a wheel that counts in lines

const BUTTONS = { 0: "window", 1: "pan", 2: "zoom" };
const middle = ([one, other]) => ({ x: (one.x + other.x) / 2, y: (one.y + other.y) / 2 });
const apart = ([one, other]) => Math.hypot(one.x - other.x, one.y - other.y);

class Hands {
  #stage;
  #viewer;
  #down = new Map(); // by pointer: {x, y} of the stage
  #drag = null; // {mode, start, last, window, hasMoved, at}
  #tap = null; // the last one: {x, y, at}

  constructor(stage, viewer) {
    this.#stage = stage;
    this.#viewer = viewer;
  }

  #point(event) {
    const box = this.#stage.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  }

  press(event) {
    if (this.#viewer.isEmpty || event.target.tagName !== "CANVAS") return;
    if (event.isPrimary) { // no other lies there: the end of one that seems to went by unseen
      this.#down.clear();
      this.#drag = null;
    }
    if (event.pointerType === "mouse" && !(event.button in BUTTONS)) return;
    event.target.setPointerCapture(event.pointerId);
    const point = this.#point(event);
    this.#down.set(event.pointerId, point);
    if (this.#down.size === 1) {
      const mode = event.pointerType === "touch" ? "window" : BUTTONS[event.button];
      this.#drag = { mode, start: point, last: point, window: this.#viewer.window, hasMoved: false, at: event.timeStamp };
    } else if (this.#down.size === 2) {
      // The first finger comes a moment before the second: what it did to the window was not meant.
      if (this.#drag.mode === "window" && this.#drag.hasMoved) this.#viewer.drag(this.#drag.window, 0, 0);
      this.#drag = { mode: "pinch", hasMoved: true, fingers: [...this.#down.values()] };
    }
  }

  move(event) {
    if (!this.#down.has(event.pointerId) || this.#viewer.isEmpty) return;
    const point = this.#point(event);
    this.#down.set(event.pointerId, point);
    const drag = this.#drag;
    if (drag.mode === "pinch") {
      this.#pinch();
      return;
    }
    if (drag.mode === "over") return;
    drag.hasMoved ||= Math.hypot(point.x - drag.start.x, point.y - drag.start.y) >= STILL;
    if (!drag.hasMoved) return;
    if (drag.mode === "window") this.#viewer.drag(drag.window, point.x - drag.start.x, point.y - drag.start.y);
    else if (drag.mode === "pan") this.#viewer.pan(point.x - drag.last.x, point.y - drag.last.y);
    else this.#viewer.zoom(Math.exp((drag.last.y - point.y) / ZOOM_DRAG), drag.start);
    drag.last = point;
  }

  #pinch() {
    const fingers = [...this.#down.values()].slice(0, 2);
    const [before, now] = [middle(this.#drag.fingers), middle(fingers)];
    this.#viewer.pan(now.x - before.x, now.y - before.y);
    if (apart(this.#drag.fingers) > 0) this.#viewer.zoom(apart(fingers) / apart(this.#drag.fingers), now);
    this.#drag.fingers = fingers;
  }

  release(event) {
    if (!this.#down.delete(event.pointerId)) return;
    const drag = this.#drag;
    if (this.#down.size) drag.mode = "over"; // one finger is left of two: it does nothing more
    else this.#drag = null;
    if (event.type === "pointerup" && event.pointerType === "touch" && !drag.hasMoved) this.#onTap(drag, event);
  }

  #onTap({ start, at }, { timeStamp }) {
    if (timeStamp - at > TAP_MS) return;
    const isSecond = this.#tap && at - this.#tap.at < TAP_MS && Math.hypot(start.x - this.#tap.x, start.y - this.#tap.y) < TAPS_APART;
    this.#tap = isSecond ? null : { ...start, at: timeStamp };
    if (isSecond && !this.#viewer.isEmpty) this.#viewer.reset();
  }

  wheel(event) {
    if (event.ctrlKey || event.metaKey || this.#viewer.isEmpty || event.target.tagName !== "CANVAS") return; // the browser's zoom
    event.preventDefault();
    const pixels = event.deltaMode === WheelEvent.DOM_DELTA_PIXEL ? event.deltaY : event.deltaY * LINE;
    this.#viewer.zoom(Math.exp(-pixels / WHEEL), this.#point(event));
  }
}

/** Let hands on `stage` work `viewer`. Whatever else lies on the stage (messages, buttons) stays as it is. */
export function gestures(stage, viewer) {
  const hands = new Hands(stage, viewer);
  const onImage = (act) => (event) => { if (event.target.tagName === "CANVAS") act(event); };
  stage.addEventListener("pointerdown", (event) => hands.press(event));
  stage.addEventListener("pointermove", (event) => hands.move(event));
  for (const type of ["pointerup", "pointercancel"]) stage.addEventListener(type, (event) => hands.release(event));
  stage.addEventListener("wheel", (event) => hands.wheel(event), { passive: false });
  stage.addEventListener("contextmenu", onImage((event) => event.preventDefault()));
  stage.addEventListener("mousedown", onImage((event) => { if (event.button === 1) event.preventDefault(); })); // no autoscroll
}
