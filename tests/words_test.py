"""Tests of `experiments/tools/words.py`: phrases that prose avoids."""

from absl.testing import absltest

from experiments.tools import words

LIST = r'\banew\b -> again'


class WordsTest(absltest.TestCase):
  def found(self, name, text):
    return list(words.find(name, text, words.read_list(LIST)))

  def test_strings_and_comments_of_a_program_are_read(self):
    program = '"""Runs anew."""\nx = f\'{y} anew\'  # anew\n'
    self.assertEqual(
      [line.partition(' ')[0] for line in self.found('a.py', program)],
      ['a.py:1:', 'a.py:2:', 'a.py:2:'],
    )

  def test_names_are_not(self):
    self.assertEmpty(self.found('a.py', 'anew = 1\n'))

  def test_a_page_is_read_whole(self):
    self.assertEqual(
      self.found('a.md', 'It\nbegins anew.'), ["a.md:2: 'anew', write: again"]
    )

  def test_a_line_without_advice_is_an_error(self):
    with self.assertRaisesRegex(ValueError, 'words.txt:1 must be PATTERN ->'):
      words.read_list('anew')

  def test_the_list_of_the_project_is_well_formed(self):
    self.assertNotEmpty(words.read_list(words.LIST.read_text()))


if __name__ == '__main__':
  absltest.main()
