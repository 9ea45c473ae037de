"""Tests of prsgd_jax.data.datasets.texts."""

import gzip
import importlib.resources
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest
import numpy as np

from prsgd_jax.data.datasets import DatasetError, texts


class ShakespeareTest(absltest.TestCase):
  def test_splits_are_consecutive_and_the_whole_text(self):
    splits = texts.shakespeare_splits()
    self.assertEqual(list(splits), ['train', 'validation', 'test'])
    whole = b''.join(split['text'].tobytes() for split in splits.values())
    self.assertLen(whole, 1_115_394)
    self.assertStartsWith(whole.decode(), 'First Citizen:\nBefore we proceed')
    self.assertEndsWith(whole.decode(), 'Whiles thou art waking.\n')
    self.assertAlmostEqual(splits['train']['text'].size / len(whole), 0.9, 5)

  def test_vocabulary_is_what_the_text_has(self):
    splits = texts.shakespeare_splits().values()
    codes = np.concatenate([split['text'].ravel() for split in splits])
    self.assertEqual(''.join(map(chr, np.unique(codes))), texts.VOCABULARY)

  def test_a_damaged_file_is_refused(self):
    root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    path = root / 'tiny_shakespeare.txt.gz'
    good = gzip.compress(b'First Citizen')
    for content in (good, good[:-5], b''):
      path.write_bytes(content)
      with (
        mock.patch.object(importlib.resources, 'files', return_value=root),
        self.assertRaisesRegex(DatasetError, 'install prsgd_jax again'),
      ):
        texts.shakespeare_splits.__wrapped__()


class EncodeTest(absltest.TestCase):
  def test_decode_undoes_it(self):
    tokens = texts.encode('To be, or not to be?\n')
    self.assertEqual(tokens.dtype, np.uint8)
    self.assertLess(tokens.max(), len(texts.VOCABULARY))
    self.assertEqual(texts.decode(tokens), 'To be, or not to be?\n')
    np.testing.assert_array_equal(
      texts.encode(texts.VOCABULARY), np.arange(len(texts.VOCABULARY))
    )

  def test_other_characters_are_refused(self):
    for text, wrong in (('a#b', '#'), ('Größe', 'ö'), ('~', '~'), ('\0', '')):
      with self.assertRaisesRegex(DatasetError, f'has no .*{wrong}'):
        texts.encode(text)


class CutTest(absltest.TestCase):
  def test_every_character_but_the_first_is_predicted_once(self):
    tokens = np.arange(101, dtype=np.uint8)
    for length in (1, 7, 10, 50, 100):
      sequences = texts.cut(tokens, length)
      self.assertEqual(sequences.shape, (100 // length, length + 1))
      predicted = sequences[:, 1:].ravel()
      np.testing.assert_array_equal(predicted, 1 + np.arange(len(predicted)))
      np.testing.assert_array_equal(sequences[1:, 0], sequences[:-1, -1])

  def test_bad_lengths_are_refused(self):
    for length in (0, -1, 5, 6):
      with self.assertRaisesRegex(DatasetError, r'must be in 1\.\.4, got'):
        texts.cut(np.zeros(5, np.uint8), length)


if __name__ == '__main__':
  absltest.main()
