"""The form as a person meets it: a real browser, with JavaScript switched off."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from nigredo.testing import Stack, eventually


@pytest.fixture
def browser(tool: Callable[[str], str]) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = tool("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--no-proxy-server"):
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"profile.managed_default_content_settings.javascript": 2})
    driver = webdriver.Chrome(options=options, service=Service(tool("chromedriver")))
    driver.set_page_load_timeout(20)
    yield driver
    driver.quit()


def test_the_form_works_without_javascript_and_the_lead_is_delivered(stack: Stack, browser: webdriver.Chrome) -> None:
    browser.get(stack.url)
    for field, value in {"name": "Maria Browser", "email": "maria@example.com", "message": "Olá,\ntudo bem?"}.items():
        label = browser.find_element(By.CSS_SELECTOR, f"label[for={field}]")
        assert label.is_displayed()
        browser.find_element(By.NAME, field).send_keys(value)
    browser.find_element(By.CSS_SELECTOR, "button[type=submit]").click()

    WebDriverWait(browser, 10).until(lambda driver: driver.current_url == f"{stack.url}/thanks")

    assert "Thank you" in browser.find_element(By.TAG_NAME, "h1").text
    query = "SELECT id, message FROM nigredo.leads WHERE name = 'Maria Browser'"
    lead_id, message = eventually(lambda: stack.rows(query), within_s=10, what="the lead's row")[0]
    assert message == "Olá,\ntudo bem?"
    eventually(
        lambda: str(lead_id) in [hook["headers"]["webhook-id"] for hook in stack.received()],
        within_s=10,
        what="the lead's webhook",
    )


def test_a_refused_form_is_a_page_that_leads_back(stack: Stack, browser: webdriver.Chrome) -> None:
    browser.get(stack.url)
    browser.find_element(By.NAME, "name").send_keys("Maria")
    browser.find_element(By.NAME, "email").send_keys("maria@localhost")  # Fine for the browser, not for us.
    browser.find_element(By.NAME, "message").send_keys("Olá")
    browser.find_element(By.CSS_SELECTOR, "button[type=submit]").click()

    alert = WebDriverWait(browser, 10).until(lambda driver: driver.find_element(By.CSS_SELECTOR, "[role=alert]"))

    assert "email" in alert.text
    assert browser.find_element(By.LINK_TEXT, "Back to the form").get_attribute("href") == f"{stack.url}/"
