"""Chromium, by selenium, for the tests that look at pages."""

import atexit
import functools
import importlib.util
import shutil


def why_missing():
  """Return the program missing for a test in a browser, or None."""
  if importlib.util.find_spec('selenium') is None:
    return 'selenium is not installed: pip install selenium'
  for programs in (('chromium', 'google-chrome'), ('chromedriver',)):
    if not any(map(shutil.which, programs)):
      return f'there is no {" or ".join(programs)}: make browser'
  return None


@functools.cache
def chromium():
  """A driver, until the tests of this process end."""
  from selenium import webdriver

  options = webdriver.ChromeOptions()
  # Chromium's sandbox refuses to run as root, as in a container.
  for argument in ('--headless=new', '--no-sandbox', '--disable-gpu'):
    options.add_argument(argument)
  options.add_argument('--disable-dev-shm-usage')
  options.binary_location = shutil.which('chromium') or shutil.which(
    'google-chrome'
  )
  options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
  service = webdriver.ChromeService(shutil.which('chromedriver'))
  driver = webdriver.Chrome(options=options, service=service)
  atexit.register(driver.quit)
  return driver
