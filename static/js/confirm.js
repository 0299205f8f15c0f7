/* <form data-confirm="120 ratings will be lost." data-confirm-title="Delete the study?" data-confirm-action="Delete study">
   asks once, in a dialog, before the form is sent. The button that was pressed is sent along as usual. */

let agreed = null; // the form that is being sent after the question

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
  if (!form.matches("form[data-confirm]") || form === agreed) return;
  event.preventDefault();
  const submitter = event.submitter;
  const { dialog, keep, go } = buildDialog(form);
  keep.addEventListener("click", () => dialog.close());
  go.addEventListener("click", () => {
    dialog.close();
    agreed = form;
    form.requestSubmit(submitter ?? undefined); // asks this listener within the call
    agreed = null;
  });
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
});
