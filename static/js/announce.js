/** Say `text` to screen readers, politely. The region is #announcer in base.html. */
export function announce(text) {
  document.getElementById("announcer").textContent = text; // the same again is said again
}
