"""What a reader marks as done: kept in the browser, shown where lectures are linked."""

import json

import pytest

from tests.site.built import LECTURES, PHONE, axe

FIRST, SECOND, *_ = LECTURES
STORED = "JSON.parse(localStorage.getItem('progress'))"
# as a private window does
NO_STORAGE = """
Storage.prototype.setItem = () => { throw new DOMException("", "QuotaExceededError"); };
"""
# what a screen reader says of a lecture's link
NAMES = """name => [...document.querySelectorAll(`a[href$="${name}/"]`)]
    .filter(link => link.querySelector(".progress-tick[aria-label=done]")).length"""


def mark(page) -> None:
    page.get_by_role("button", name="Mark this lecture as done").click()


def test_a_lecture_is_marked_and_shown_everywhere(open_page, base):
    page = open_page(f"{FIRST}/")
    assert page.evaluate(NAMES, FIRST) == 0
    mark(page)
    button = page.get_by_role("button", name="Done", pressed=True)
    assert button.is_visible()
    said = page.locator(".progress-said[role=status]").inner_text()
    assert said.startswith(f"1 of {len(LECTURES)} lectures done, about ")
    assert page.evaluate(STORED)["done"] == [FIRST]

    # in the navigation, also after instant navigation and after a reload
    page.evaluate("stayed = true")
    page.locator(f'.md-nav--primary a[href$="{SECOND.partition("/")[2]}/"]').first.click()
    page.wait_for_selector(f'.lecture-end[data-lecture="{SECOND}"] button')
    assert page.evaluate("stayed")
    assert page.evaluate(NAMES, FIRST) >= 1
    page.reload()
    assert page.evaluate(NAMES, FIRST) >= 1

    # and on the front page's table, with a count
    page.goto(base)
    assert page.locator(f"[data-progress] a[href$='{FIRST}/'] .progress-tick").count() == 1
    assert page.locator(".progress-count progress").get_attribute("value") == "1"
    assert f"1 of {len(LECTURES)} lectures done" in page.locator(".progress-count").inner_text()


def test_a_mark_is_taken_back(open_page):
    page = open_page(f"{FIRST}/")
    mark(page)
    page.get_by_role("button", name="Done", pressed=True).press("Enter")
    assert page.get_by_role("button", name="Mark this lecture as done").is_visible()
    assert page.evaluate(STORED)["done"] == []
    assert page.evaluate(NAMES, FIRST) == 0


def test_one_continues_where_one_stopped(open_page, base):
    page = open_page("")
    assert not page.locator("[data-continue]").is_visible()
    page.goto(f"{base}{FIRST}/")
    heading = page.locator("article h2[id]").nth(2)
    section = heading.get_attribute("id")
    heading.evaluate("heading => heading.scrollIntoView()")
    page.wait_for_function(f"{STORED}?.last?.section === '{section}'")
    page.goto(base)
    link = page.locator("[data-continue] a")
    assert link.get_attribute("href") == f"{base}{FIRST}/#{section}"
    link.click()
    page.wait_for_url(f"**/{FIRST}/#{section}")
    mark(page)
    page.goto(base)
    assert page.locator("[data-continue]").inner_text().startswith("Next for you: ")
    assert link.get_attribute("href") == f"{base}{SECOND}/"


def test_progress_is_forgotten(open_page, base):
    page = open_page(f"{FIRST}/")
    mark(page)
    page.goto(base)
    page.locator("[data-continue]").get_by_role("button", name="Forget my progress").click()
    assert page.evaluate("localStorage.getItem('progress')") is None
    assert not page.locator("[data-continue]").is_visible()
    assert page.locator(".progress-count, .progress-tick").count() == 0
    assert page.evaluate("document.activeElement.tagName") == "H1"  # focus is not lost


def test_another_tab_follows(open_page, base):
    page = open_page(f"{FIRST}/")
    other = page.context.new_page()
    other.goto(base)
    mark(page)
    other.wait_for_selector("[data-progress] .progress-tick")


@pytest.mark.parametrize("stored", ["not JSON", '{"done": ["no/such"], "last": {"name": "x"}}'])
def test_what_is_stored_may_be_broken(open_page, base, stored):
    page = open_page("404.html")
    page.evaluate("text => localStorage.setItem('progress', text)", stored)
    page.goto(base)
    assert not page.locator("[data-continue]").is_visible()
    page.goto(f"{base}{FIRST}/")
    mark(page)
    assert FIRST in page.evaluate(STORED)["done"]


def test_without_storage_it_lasts_as_long_as_the_tab(open_page):
    page = open_page(f"{FIRST}/", script=NO_STORAGE)
    mark(page)
    page.locator(".md-header a.md-logo").click()
    page.wait_for_selector("[data-progress] .progress-tick")


def test_without_scripts_nothing_is_shown(open_page):
    page = open_page(f"{FIRST}/", java_script_enabled=False)
    assert page.locator(".lecture-end button, .progress-tick").count() == 0


def test_with_marks_axe_finds_nothing_and_a_phone_has_room(open_page, base):
    page = open_page(f"{FIRST}/", viewport=PHONE)
    state = {"done": list(LECTURES), "last": {"name": FIRST, "section": "", "heading": ""}}
    page.evaluate("text => localStorage.setItem('progress', text)", json.dumps(state))
    state["done"] = state["done"][1:]
    for address in (f"{FIRST}/", ""):
        page.goto(base + address)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert not axe(page)
