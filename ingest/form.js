// The form works without this script. With it, a message that is sent twice (an impatient click, a network that went
// away) is taken once, and errors appear without losing what was typed.
"use strict";
for (const form of document.querySelectorAll('form[action$="/api/leads"]')) {
  const opened = performance.now();
  let key = crypto.randomUUID ? crypto.randomUUID() : String(Math.random()).slice(2) + Date.now();
  form.addEventListener("input", () => { form.dataset.changed = "yes"; });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (form.dataset.changed === "yes") {
      // Another text is another message.
      key = crypto.randomUUID ? crypto.randomUUID() : String(Math.random()).slice(2) + Date.now();
      form.dataset.changed = "no";
    }
    const button = form.querySelector("[type=submit]");
    button.disabled = true;
    const body = new URLSearchParams(new FormData(form));
    body.set("_seconds", ((performance.now() - opened) / 1000).toFixed(1));
    try {
      const answer = await fetch(form.action, {
        method: "POST", body, headers: { Accept: "text/html", "Idempotency-Key": key },
      });
      if (answer.redirected) {
        location.assign(answer.url);
        return;
      }
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      document.title = page.title;
      document.querySelector("main").replaceWith(page.querySelector("main"));
      document.querySelector("[role=alert]")?.focus();
      // The form in the new page is sent as without this script.
    } catch {
      // The network is away: the browser says so in its own words.
      form.submit();
    } finally {
      button.disabled = false;
    }
  });
}
