"""Headless Chromium for tests of pages, or why there is none.

In: a new folder. Out: a Selenium driver. Example: `with chromium(tmp_path) as page: page.get(url)`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tools import needed

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--force-prefers-reduced-motion"),
)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def chromium(folder: Path, size: str = "1280,1700") -> Iterator[Any]:
    """A browser with a profile of its own in `folder`; the test is skipped where there is none."""
    program = needed("chromium", *BROWSERS)
    driver = needed("chromium-driver", "chromedriver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}", f"--window-size={size}"):
        options.add_argument(flag)
    place = {"download.default_directory": str(folder), "download.prompt_for_download": False}
    options.add_experimental_option("prefs", place)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    page = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    page.set_page_load_timeout(120)
    page.set_script_timeout(120)
    try:
        yield page
    finally:
        page.quit()
