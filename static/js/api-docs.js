/* The API's description, drawn by Swagger UI. It is for reading: nothing is sent from here. */

const root = document.documentElement;
const nothing = () => () => null; // in place of parts: the page has a head of its own, and nobody signs in here
const spec = JSON.parse(document.getElementById("api-schema").textContent);
delete spec.components.securitySchemes; // else a token is asked for
const follow = () => root.classList.toggle("dark-mode", root.dataset.theme !== "light"); // Swagger UI's own switch

follow();
document.addEventListener("medsyn:theme", follow);
window.SwaggerUIBundle({
  spec,
  dom_id: "#api-docs",
  supportedSubmitMethods: [],
  deepLinking: true,
  defaultModelsExpandDepth: -1,
  plugins: [{ wrapComponents: { InfoContainer: nothing, authorizeOperationBtn: nothing } }],
});
