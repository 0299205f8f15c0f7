/* What was refused: said above the image until the reader has read it, reloads included. */

const GRADES = { 1: "Poor", 2: "Acceptable", 3: "Excellent" };
const shown = new Map(); // seq -> element

export const label = (value) => (value ? `${value} ${GRADES[value]}` : "Cannot judge");

function given({ kind, value }) {
  if (kind === "undo") return "Taking it back";
  return kind === "remark" ? "What you noted" : label(value);
}

/** Title and text of a refusal. */
function wording(refusal) {
  const { body, message } = refusal.error;
  const stands = body?.rating;
  if (body?.code === "study_closed") return ["The study was closed", `${given(refusal)} was not stored. ${message}`];
  if (body?.code !== "stale_revision" || !stands) return ["Not stored", `${given(refusal)} was refused: ${message}`];
  const how = stands.state === "withdrawn"
    ? "It was taken back there and is to be rated again"
    : `${label(stands.value)} stands for this image there`;
  return ["Rated in another window", `${how}; ${given(refusal)} was not stored.`];
}

function notice(refusal, onRead) {
  const element = document.createElement("div");
  element.className = "notice warn";
  element.setAttribute("role", "alert");
  const [title, text] = wording(refusal);
  const strong = document.createElement("strong");
  strong.textContent = title;
  const body = document.createElement("p");
  body.textContent = `${text} (${refusal.place.prompt})`;
  const close = document.createElement("button");
  close.type = "button";
  close.className = "button small";
  close.textContent = "Understood";
  close.addEventListener("click", onRead);
  element.append(strong, body, close);
  return element;
}

/** Show `refusals` and no others; onRead(refusal) when the reader dismisses one. Returns those that are new. */
export function showRefusals(refusals, onRead) {
  const fresh = refusals.filter(({ seq }) => !shown.has(seq));
  for (const refusal of fresh) {
    const element = notice(refusal, () => onRead(refusal));
    shown.set(refusal.seq, element);
    document.querySelector(".messages").append(element);
  }
  const known = new Set(refusals.map(({ seq }) => seq));
  for (const [seq, element] of shown) {
    if (!known.has(seq)) {
      element.remove();
      shown.delete(seq);
    }
  }
  return fresh;
}
