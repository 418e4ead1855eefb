"""What stands for the terminal in tests of runs."""


class Lines:
    """Stands for the terminal."""

    def __init__(self):
        self.said, self.rows = [], []

    def say(self, text):
        self.said.append(text)

    def step(self, row):
        self.rows.append(row)
