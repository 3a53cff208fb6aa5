// The form works without this script. With it, a message that is sent twice (an impatient click, a network that went
// away) is taken once, and nothing that was typed is lost, whatever the answer.
"use strict";
const opened = performance.now();
// Who mends a form that came back, or sends a text that the browser kept, is quick: his time is not told.
let fresh = !document.querySelector("[role=alert]"), typed = false;

const newKey = () => crypto.randomUUID ? crypto.randomUUID() : String(Math.random()).slice(2) + Date.now();

function tell(form, text) {
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

function attend(form) {
  // Another site's form that came back leads to that site, where a script may not follow.
  if (form.elements._next) return;
  let key = newKey(), changed = false;
  form.addEventListener("input", () => { changed = typed = true; });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (changed) {
      // Another text is another message.
      key = newKey();
      changed = false;
    }
    const button = form.querySelector("[type=submit]"), body = new URLSearchParams(new FormData(form));
    button.disabled = true;
    if (fresh && typed) body.set("_seconds", ((performance.now() - opened) / 1000).toFixed(1));
    try {
      // Not `form.action`: that is a field, where another site's form has one of this name.
      const answer = await fetch(form.getAttribute("action"), {
        method: "POST", body, headers: { Accept: "text/html", "Idempotency-Key": key },
      });
      if (answer.redirected) {
        location.assign(answer.url);
        return;
      }
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const main = page.querySelector("main"), again = page.querySelector("form");
      // Another status is not about what was typed: sent again, it is the same message under the same key.
      if (again && [400, 415, 422].includes(answer.status)) {
        document.title = page.title;
        document.querySelector("main").replaceWith(main);
        fresh = false;
        attend(again);
        document.querySelector("[role=alert]")?.focus();
      } else {
        // Not taken, and not for what was typed: it stays, to be sent again.
        tell(form, [...main.querySelectorAll("h1, [role=alert]")].map((part) => part.textContent).join(": "));
      }
    } catch {
      tell(form, form.dataset.away);
    } finally {
      button.disabled = false;
    }
  });
}

document.querySelectorAll('form[action^="/api/leads"]').forEach(attend);
