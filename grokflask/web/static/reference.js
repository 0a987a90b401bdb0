// Starts Swagger UI on this gateway's own document. Keys stay in the page: nothing is stored.

(() => {
  const place = document.getElementById("swagger");

  // Swagger UI's colours follow a class of the root; the frame's switch sets an attribute.
  const root = document.documentElement;
  const system = window.matchMedia("(prefers-color-scheme: dark)");

  function follow() {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : system.matches;
    root.classList.toggle("dark-mode", dark);
  }

  follow();
  system.addEventListener("change", follow);
  new MutationObserver(follow).observe(root, { attributeFilter: ["data-theme"] });

  // Fields that Swagger UI leaves without a name get one.
  const NAMES = {
    ".examples-select-element": "Example",
    "textarea.body-param__text": "Request body",
    "select.content-type": "Media type",
  };

  function name() {
    for (const [selector, text] of Object.entries(NAMES)) {
      for (const field of place.querySelectorAll(`${selector}:not([aria-label])`)) {
        field.setAttribute("aria-label", text);
      }
    }
  }

  new MutationObserver(name).observe(place, { childList: true, subtree: true });

  window.SwaggerUIBundle({
    domNode: place,
    url: place.dataset.document,
    deepLinking: true,
    docExpansion: "list",
    defaultModelsExpandDepth: -1,
    displayRequestDuration: true,
    persistAuthorization: false,
    tryItOutEnabled: true,
    validatorUrl: null, // or the document would be sent to Swagger's own host
    queryConfigEnabled: false, // an address must not choose another document
  });
})();
