"""What an hour of the devices costs, as users write it: 1.20, '1.20 USD'. Prices change, so none is built in."""

import dataclasses
import re

from dreambooth_jax.config.schema import ConfigError

_WRITTEN = re.compile(r'(?P<amount>[0-9]{1,9}(?:\.[0-9]{1,6})?)(?: ?(?P<currency>[^\s\d.,+-][^\s\d]{0,9}))?')


@dataclasses.dataclass(frozen=True)
class Price:
    """The price of an hour.

    Attributes:
      amount: how much an hour costs, above 0.
      currency: of what; '': it was not said.
      text: both as they were written.
    """

    amount: float
    currency: str
    text: str

    @classmethod
    def parsed(cls, name: str, text: str) -> 'Price':
        """Returns the price that a text says.

        Args:
          name: what holds the text, for the message, such as '--price_per_hour'.
          text: an amount and, if wanted, a currency of at most 10 characters, such as '1.20 USD' or '3€'.

        Raises:
          ConfigError: if the text says no price above 0.
        """
        found = _WRITTEN.fullmatch(text.strip())
        if not found or float(found['amount']) == 0 or not text.isprintable():
            raise ConfigError(
                f'{name} is {text!r} but must be what an hour of the devices costs, a number above 0 with at most 9 '
                'digits before and 6 behind a decimal point, and a currency behind it if you like; write it as 1.20 or '
                "'1.20 USD'"
            )
        return cls(float(found['amount']), found['currency'] or '', text.strip())

    def amount_of(self, seconds: float) -> float:
        """Returns what so many seconds cost, in the currency of the price."""
        return self.amount * seconds / 3600

    def of(self, seconds: float) -> str:
        """Returns what so many seconds cost in words, such as 'about 0.25 USD at 1.20 USD an hour'."""
        cost = self.amount_of(seconds)
        told = f'about {cost:.2f}' if cost >= 0.01 else 'less than 0.01'
        return f'{told}{" " * bool(self.currency)}{self.currency} at {self.text} an hour'
