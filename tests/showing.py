"""What stands for the terminal in tests of runs."""


class Lines:
    """Stands for the terminal."""

    def __init__(self):
        self.said, self.rows = [], []

    def say(self, text):
        self.said.append(text)

    def step(self, row):
        self.rows.append(row)


class Stops(Lines):
    """Interrupts the run after so many steps."""

    def __init__(self, after):
        super().__init__()
        self.after = after

    def step(self, row):
        if row["step"] == self.after:
            raise KeyboardInterrupt
