import os
import subprocess
import tempfile
import unittest

TALLY = os.environ.get("TALLY", "./tally")


def tally(*args, stdin=b""):
    p = subprocess.run([TALLY, *args], input=stdin, capture_output=True)
    return p.returncode, p.stdout.decode().split()


class Tally(unittest.TestCase):
    def test_empty(self):
        self.assertEqual(tally(), (0, ["0", "0", "0"]))

    def test_words_and_lines(self):
        self.assertEqual(tally(stdin=b"one two\n three\n"), (0, ["2", "3", "15"]))

    def test_file_with_a_space_in_its_name(self):
        with tempfile.TemporaryDirectory() as d:
            path = os.path.join(d, "a file")
            with open(path, "wb") as f:
                f.write(b"x\n")
            self.assertEqual(tally(path), (0, ["1", "1", "2"]))

    def test_missing_file(self):
        self.assertEqual(tally("/nonexistent")[0], 1)


if __name__ == "__main__":
    unittest.main()
