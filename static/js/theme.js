/* The theme, before the first paint: loaded in <head> as a plain external script (a module would run after it).
   The choice is kept in localStorage under "medsyn-theme"; buttons with data-theme-toggle change it.
   A change fires "medsyn:theme" on document. */
(() => {
  const KEY = "medsyn-theme";
  const root = document.documentElement;

  const read = () => {
    try {
      return localStorage.getItem(KEY) === "light" ? "light" : "dark";
    } catch {
      return "dark"; // storage is blocked: the default serves
    }
  };

  const keep = (theme) => {
    try {
      localStorage.setItem(KEY, theme);
    } catch {
      // storage is blocked: the choice lasts as long as the page
    }
  };

  const label = () => {
    const next = root.dataset.theme === "light" ? "Dark theme" : "Light theme";
    for (const button of document.querySelectorAll("[data-theme-toggle]")) button.textContent = next;
  };

  let chosen = read();
  const show = (theme) => {
    root.dataset.theme = theme;
    label();
    document.dispatchEvent(new CustomEvent("medsyn:theme", { detail: { theme } }));
  };

  show(chosen);
  document.addEventListener("DOMContentLoaded", label);
  document.addEventListener("click", (event) => {
    if (!event.target.closest?.("[data-theme-toggle]")) return;
    chosen = chosen === "light" ? "dark" : "light";
    keep(chosen);
    show(chosen);
  });
  // Charts are pixels: they must be drawn light before the page goes to paper.
  addEventListener("beforeprint", () => show("light"));
  addEventListener("afterprint", () => show(chosen));

  // An open menu closes on Escape and on a click elsewhere.
  document.addEventListener("click", (event) => {
    for (const menu of document.querySelectorAll("details.menu[open]")) {
      if (!menu.contains(event.target)) menu.open = false;
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    for (const menu of document.querySelectorAll("details.menu[open]")) {
      menu.open = false;
      menu.querySelector("summary").focus();
    }
  });
})();
