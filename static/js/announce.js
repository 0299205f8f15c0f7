/** Say `text` to screen readers, politely. The region is #announcer in base.html. */
export function announce(text) {
  const region = document.getElementById("announcer");
  if (region && region.textContent !== text) region.textContent = text;
}
