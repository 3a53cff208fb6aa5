// The form works without this script. With it, a message that is sent twice (an impatient click, a lost connection) is
// accepted once, and the typed text stays in the form after an error.
"use strict";
const opened = performance.now();
// People who correct a form, or send a text that the browser restored, are quick: their time is not sent.
let fresh = !document.querySelector("[role=alert]"), typed = false;

const newKey = () => crypto.randomUUID ? crypto.randomUUID() : String(Math.random()).slice(2) + Date.now();

function showAlert(form, text) {
  let alert = document.querySelector("[role=alert]");
  if (!alert) {
    alert = document.createElement("p");
    alert.setAttribute("role", "alert");
    alert.className = "wrong";
    alert.tabIndex = -1;
    form.before(alert);
  }
  alert.textContent = text;
  alert.focus();
}

function enhance(form) {
  // Another site's form redirects to that site, which a script cannot follow.
  if (form.elements._next) return;
  let key = newKey(), changed = false;
  form.addEventListener("input", () => { changed = typed = true; });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (changed) {
      // A changed text is a new message.
      key = newKey();
      changed = false;
    }
    const button = form.querySelector("[type=submit]"), body = new URLSearchParams(new FormData(form));
    button.disabled = true;
    if (fresh && typed) body.set("_seconds", ((performance.now() - opened) / 1000).toFixed(1));
    try {
      // Not `form.action`, which is an input where another site's form has a field of this name.
      const answer = await fetch(form.getAttribute("action"), {
        method: "POST", body, headers: { Accept: "text/html", "Idempotency-Key": key },
      });
      if (answer.redirected) {
        location.assign(answer.url);
        return;
      }
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const main = page.querySelector("main"), again = page.querySelector("form");
      // Other statuses do not concern the typed text: a retry is the same message under the same key.
      if (again && [400, 415, 422].includes(answer.status)) {
        document.title = page.title;
        document.querySelector("main").replaceWith(main);
        fresh = false;
        enhance(again);
        document.querySelector("[role=alert]")?.focus();
      } else {
        // Not accepted, for a reason other than the typed text: the form stays, to be sent again.
        showAlert(form, [...main.querySelectorAll("h1, [role=alert]")].map((part) => part.textContent).join(": "));
      }
    } catch {
      showAlert(form, form.dataset.away);
    } finally {
      button.disabled = false;
    }
  });
}

document.querySelectorAll('form[action^="/api/leads"]').forEach(enhance);
