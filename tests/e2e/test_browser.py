"""The form as a person meets it: a real browser, without JavaScript and with it, on our page and on somebody else's."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from nigredo.testing import Stack, eventually

ALLOWED = "Access-Control-Allow-Origin"
DOCUMENT = Path(__file__).parents[2] / "docs" / "FORMS.md"


@pytest.fixture(autouse=True, scope="module")
def without_a_limit(stack: Stack) -> Iterator[None]:
    """Let this machine's browsers send as many forms as there are tests."""
    assert stack.nigredo("config", "set", "RATE_LIMIT_EXEMPT=127.0.0.0/8").code == 0
    yield
    assert stack.nigredo("config", "unset", "RATE_LIMIT_EXEMPT").code == 0


@contextmanager
def chromium(tool: Callable[[str], str], *, javascript: bool) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = tool("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--no-proxy-server"):
        options.add_argument(argument)
    if not javascript:
        options.add_experimental_option("prefs", {"profile.managed_default_content_settings.javascript": 2})
    driver = webdriver.Chrome(options=options, service=Service(tool("chromedriver")))
    driver.set_page_load_timeout(20)
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture
def browser(tool: Callable[[str], str]) -> Iterator[webdriver.Chrome]:
    with chromium(tool, javascript=False) as driver:
        yield driver


@pytest.fixture
def scripted(tool: Callable[[str], str]) -> Iterator[webdriver.Chrome]:
    with chromium(tool, javascript=True) as driver:
        yield driver


@pytest.fixture
def person() -> str:
    """A name that nobody had before."""
    return f"Maria {uuid4().hex}"


@pytest.fixture
def site() -> Iterator[Site]:
    """Somebody else's site: another origin, that serves one page at any path."""
    site = Site()
    yield site
    site.close()


class Site:
    def __init__(self) -> None:
        self.page = ""
        self.charset = "utf-8"
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                content = site.page.encode(site.charset)
                self.send_response(200)
                self.send_header("Content-Type", f"text/html; charset={site.charset}")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        # A name and not an address: `crypto.randomUUID` is for secure contexts, of which localhost is one.
        self.url = f"http://localhost:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


def snippet(name: str, stack: Stack, site: Site) -> str:
    """Return a snippet of the document for site owners, as an owner would paste it."""
    found = re.search(rf"<!-- snippet: {name} -->\n```html\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert found is not None
    return found[1].replace("NIGREDO_URL", stack.url).replace("SITE_URL", site.url)


def fill(driver: webdriver.Chrome, **fields: str) -> None:
    for name, value in fields.items():
        driver.find_element(By.NAME, name).send_keys(value)
    driver.find_element(By.CSS_SELECTOR, "button").click()


@contextmanager
def allowed(stack: Stack, site: Site) -> Iterator[None]:
    """Let a site redirect to itself and post by script; yields once ingest obeys."""
    for name in ("REDIRECT_ALLOWED_ORIGINS", "CORS_ALLOWED_ORIGINS"):
        assert stack.nigredo("config", "set", f"{name}={site.url}").code == 0
    try:
        # The second one was set last.
        eventually(
            lambda: httpx.options(f"{stack.url}/api/leads", headers={"Origin": site.url}).headers.get(ALLOWED),
            within_s=60,
            what="the permission",
        )
        yield
    finally:
        for name in ("REDIRECT_ALLOWED_ORIGINS", "CORS_ALLOWED_ORIGINS"):
            assert stack.nigredo("config", "unset", name).code == 0


def test_the_form_works_without_javascript_and_the_lead_is_delivered(
    stack: Stack, browser: webdriver.Chrome, person: str
) -> None:
    browser.get(stack.url)
    for field, value in {"name": person, "email": "maria@example.com", "message": "Olá,\ntudo bem?"}.items():
        label = browser.find_element(By.CSS_SELECTOR, f"label[for={field}]")
        assert label.is_displayed()
        browser.find_element(By.NAME, field).send_keys(value)
    browser.find_element(By.CSS_SELECTOR, "button[type=submit]").click()

    WebDriverWait(browser, 60).until(lambda driver: driver.current_url == f"{stack.url}/thanks")

    assert "Thank you" in browser.find_element(By.TAG_NAME, "h1").text
    query = "SELECT id, message FROM nigredo.leads WHERE name = %s"
    lead_id, message = eventually(lambda: stack.rows(query, person), within_s=60, what="the lead's row")[0]
    assert message == "Olá,\ntudo bem?"
    eventually(
        lambda: str(lead_id) in [hook["headers"]["webhook-id"] for hook in stack.received()],
        within_s=60,
        what="the lead's webhook",
    )


def test_a_refused_form_comes_back_with_what_was_typed(stack: Stack, browser: webdriver.Chrome) -> None:
    browser.get(stack.url)
    # Fine for the browser, not for us.
    fill(browser, name="Maria", email="maria@localhost", message="Olá")

    alert = WebDriverWait(browser, 60).until(lambda driver: driver.find_element(By.CSS_SELECTOR, "[role=alert]"))

    assert "E-mail" in alert.text
    email = browser.find_element(By.NAME, "email")
    assert email.get_attribute("aria-invalid") == "true"
    assert browser.find_element(By.ID, str(email.get_attribute("aria-describedby"))).is_displayed()
    assert browser.find_element(By.NAME, "message").get_attribute("value") == "Olá"
    assert not browser.find_element(By.NAME, "_gotcha").rect["x"] > 0


def test_with_javascript_the_form_is_sent_under_a_key_and_errors_appear_in_place(
    stack: Stack, scripted: webdriver.Chrome, person: str
) -> None:
    scripted.get(stack.url)
    fill(scripted, name=person, email="maria@localhost", message="Olá")
    WebDriverWait(scripted, 60).until(lambda driver: driver.find_elements(By.CSS_SELECTOR, "[role=alert]"))
    assert scripted.current_url == f"{stack.url}/"

    scripted.get(stack.url)
    # A person takes longer than a program.
    WebDriverWait(scripted, 60).until(lambda driver: driver.execute_script("return performance.now()") > 2_100)
    fill(scripted, name=person, email="maria@example.com", message="Olá")
    WebDriverWait(scripted, 60).until(lambda driver: driver.current_url == f"{stack.url}/thanks")

    query = "SELECT count(*) FROM nigredo.leads WHERE name = %s"
    eventually(lambda: stack.rows(query, person) == [(1,)], within_s=60, what="the lead's row")


def test_the_snippet_without_a_script_works_on_another_site(
    stack: Stack, browser: webdriver.Chrome, site: Site, person: str
) -> None:
    site.page = snippet("html", stack, site)
    with allowed(stack, site):
        browser.get(f"{site.url}/contact?utm_source=letter")
        fill(browser, name=person, email="maria@example.com", message="Olá")
        WebDriverWait(browser, 60).until(lambda driver: driver.current_url == f"{site.url}/thanks.html")

    query = "SELECT form_id, source FROM nigredo.leads WHERE name = %s"
    # Browsers tell another site the origin alone.
    assert eventually(lambda: stack.rows(query, person), within_s=60, what="the lead's row") == [
        ("contact", "localhost")
    ]


def test_the_snippet_with_a_script_works_on_a_site_that_is_allowed_and_only_there(
    stack: Stack, scripted: webdriver.Chrome, site: Site, person: str
) -> None:
    site.page = snippet("fetch", stack, site)
    with allowed(stack, site):
        scripted.get(site.url)
        fill(scripted, name=person, email="maria@localhost", message="Olá")
        status = scripted.find_element(By.CSS_SELECTOR, "[role=status]")
        WebDriverWait(scripted, 60).until(lambda _: "email" in status.text)

        scripted.find_element(By.NAME, "email").clear()
        fill(scripted, email="maria@example.com")
        WebDriverWait(scripted, 60).until(lambda _: status.text == "Thank you.")

    query = "SELECT count(*) FROM nigredo.leads WHERE name = %s"
    eventually(lambda: stack.rows(query, person) == [(1,)], within_s=60, what="the lead's row")


def test_a_message_that_is_not_taken_stays_in_the_form_to_be_sent_again(
    stack: Stack, scripted: webdriver.Chrome, person: str
) -> None:
    def told() -> str:
        return " ".join(alert.text for alert in scripted.find_elements(By.CSS_SELECTOR, "[role=alert]"))

    def in_maintenance() -> bool:
        return httpx.post(f"{stack.url}/api/leads").status_code == 503

    scripted.get(f"{stack.url}/?lang=pt")
    WebDriverWait(scripted, 60).until(lambda driver: driver.execute_script("return performance.now()") > 2_100)
    assert stack.nigredo("maintenance", "on", "--text", "Back at noon.").code == 0
    try:
        eventually(in_maintenance, within_s=60, what="maintenance")
        fill(scripted, name=person, email="maria@example.com", message="Olá")
        WebDriverWait(scripted, 60).until(lambda _: "Back at noon." in told())
    finally:
        assert stack.nigredo("maintenance", "off").code == 0
    eventually(lambda: not in_maintenance(), within_s=60, what="the end of maintenance")
    scripted.set_network_conditions(offline=True, latency=0, throughput=0)
    scripted.find_element(By.CSS_SELECTOR, "button").click()
    WebDriverWait(scripted, 60).until(lambda _: "sem conexão" in told())
    assert scripted.find_element(By.NAME, "message").get_attribute("value") == "Olá"

    scripted.delete_network_conditions()
    scripted.find_element(By.CSS_SELECTOR, "button").click()
    WebDriverWait(scripted, 60).until(lambda driver: driver.current_url == f"{stack.url}/thanks?lang=pt")

    assert scripted.find_element(By.TAG_NAME, "h1").text == "Obrigado"
    query = "SELECT count(*) FROM nigredo.leads WHERE name = %s"
    eventually(lambda: stack.rows(query, person) == [(1,)], within_s=60, what="the lead's row")


def mend_the_address(driver: webdriver.Chrome) -> None:
    """On the page that came back, and quicker than anybody fills in a whole form."""
    WebDriverWait(driver, 10).until(lambda _: driver.find_elements(By.CSS_SELECTOR, "[aria-invalid=true]"))
    driver.find_element(By.NAME, "email").clear()
    fill(driver, email="maria@example.com")


@pytest.mark.parametrize("javascript", [False, True])
def test_another_sites_form_is_mended_on_our_page_and_leads_back_there(
    stack: Stack, tool: Callable[[str], str], site: Site, person: str, *, javascript: bool
) -> None:
    name = f"{person} {javascript}"
    site.page = snippet("html", stack, site)
    with allowed(stack, site), chromium(tool, javascript=javascript) as driver:
        driver.get(f"{site.url}/contact")
        fill(driver, name=name, email="maria@localhost", message="Olá")
        mend_the_address(driver)
        WebDriverWait(driver, 10).until(lambda _: driver.current_url == f"{site.url}/thanks.html")

    query = "SELECT form_id, source FROM nigredo.leads WHERE name = %s"
    assert eventually(lambda: stack.rows(query, name), within_s=60, what="the lead's row") == [("contact", "localhost")]


def test_another_sites_form_with_a_field_called_action_is_mended_too(
    stack: Stack, scripted: webdriver.Chrome, site: Site, person: str
) -> None:
    site.page = f"""<!doctype html><form action="{stack.url}/api/leads" method="post">
        <input type="hidden" name="action" value="subscribe">
        <input name="name"><input name="email"><textarea name="message"></textarea><button>Send</button></form>"""
    scripted.get(f"{site.url}/contact")
    fill(scripted, name=person, email="maria@localhost", message="Hello")
    mend_the_address(scripted)
    WebDriverWait(scripted, 60).until(lambda driver: driver.current_url == f"{stack.url}/thanks")

    query = "SELECT extra->>'action' FROM nigredo.leads WHERE name = %s"
    assert eventually(lambda: stack.rows(query, person), within_s=60, what="the lead's row") == [("subscribe",)]


@pytest.mark.parametrize("told", [True, False], ids=["told", "untold"])
def test_a_page_in_another_encoding_costs_no_letter(
    stack: Stack, browser: webdriver.Chrome, site: Site, person: str, *, told: bool
) -> None:
    name, site.charset = f"{person} José", "windows-1252"
    field = '<input type="hidden" name="_charset_">' if told else ""
    site.page = f"""<!doctype html><title>Olá</title><form action="{stack.url}/api/leads" method="post">{field}
        <input name="name"><input name="email"><textarea name="message"></textarea><button>Send</button></form>"""
    browser.get(f"{site.url}/contact")
    fill(browser, name=name, email="maria@example.com", message="São 20 €")
    if not told:
        WebDriverWait(browser, 60).until(lambda _: browser.find_elements(By.CSS_SELECTOR, "[aria-invalid=true]"))
        assert browser.find_element(By.NAME, "message").get_attribute("value") == "São 20 €"
        browser.find_element(By.CSS_SELECTOR, "button").click()
    WebDriverWait(browser, 60).until(lambda driver: driver.current_url == f"{stack.url}/thanks")

    query = "SELECT message FROM nigredo.leads WHERE name = %s"
    assert eventually(lambda: stack.rows(query, name), within_s=60, what="the lead's row") == [("São 20 €",)]


def test_a_form_without_a_method_is_sent_from_the_page_that_comes_back(
    stack: Stack, scripted: webdriver.Chrome, site: Site, person: str
) -> None:
    site.page = f"""<!doctype html><form action="{stack.url}/api/leads">
        <input name="name"><input name="email"><textarea name="message"></textarea><button>Send</button></form>"""
    scripted.get(f"{site.url}/contact")
    fill(scripted, name=person, email="maria@example.com", message="Hello")
    WebDriverWait(scripted, 60).until(lambda _: scripted.find_elements(By.CSS_SELECTOR, "[role=alert]"))
    scripted.find_element(By.CSS_SELECTOR, "button[type=submit]").click()
    WebDriverWait(scripted, 60).until(lambda driver: driver.current_url == f"{stack.url}/thanks")

    query = "SELECT count(*) FROM nigredo.leads WHERE name = %s"
    eventually(lambda: stack.rows(query, person) == [(1,)], within_s=60, what="the lead's row")
