/* <form data-confirm="120 ratings will be lost." data-confirm-title="Delete the study?" data-confirm-action="Delete study">
   asks once, in a dialog, before the form is sent. The button that was pressed is sent along as usual. */

const agreed = new WeakSet();

function textElement(tag, text, className = "") {
  const element = document.createElement(tag);
  element.textContent = text;
  element.className = className;
  return element;
}

function buildDialog(form) {
  const dialog = document.createElement("dialog");
  const title = textElement("h2", form.dataset.confirmTitle || "Are you sure?");
  const loss = textElement("p", form.dataset.confirm);
  const buttons = document.createElement("div");
  buttons.className = "actions end";
  const keep = textElement("button", form.dataset.confirmKeep || "Keep", "button");
  const go = textElement("button", form.dataset.confirmAction || "Go on", "button danger");
  keep.type = go.type = "button";
  keep.autofocus = true;
  title.id = "confirm-title";
  loss.id = "confirm-loss";
  dialog.setAttribute("role", "alertdialog");
  dialog.setAttribute("aria-labelledby", title.id);
  dialog.setAttribute("aria-describedby", loss.id);
  buttons.append(keep, go);
  dialog.append(title, loss, buttons);
  return { dialog, keep, go };
}

document.addEventListener("submit", (event) => {
  const form = event.target;
  if (!form.matches("form[data-confirm]") || agreed.has(form)) return;
  event.preventDefault();
  const submitter = event.submitter;
  const { dialog, keep, go } = buildDialog(form);
  keep.addEventListener("click", () => dialog.close());
  go.addEventListener("click", () => {
    agreed.add(form);
    dialog.close();
    form.requestSubmit(submitter ?? undefined);
  });
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
});
// A page that comes back from the browser's history asks again.
addEventListener("pageshow", (event) => {
  if (event.persisted) for (const form of document.querySelectorAll("form[data-confirm]")) agreed.delete(form);
});
