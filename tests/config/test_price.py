"""What an hour of the devices costs, as users write it."""

import pytest

from dreambooth_jax.config import ConfigError
from dreambooth_jax.config.price import Price


@pytest.mark.parametrize(
    ('text', 'amount', 'currency'),
    [
        ('1.20', 1.2, ''),
        ('1.20 USD', 1.2, 'USD'),
        (' 3€ ', 3.0, '€'),
        ('0.000001', 1e-6, ''),
        ('999999999 Rp', 999999999.0, 'Rp'),
    ],
)
def test_a_price_is_an_amount_and_a_currency_if_one_likes(text, amount, currency):
    found = Price.parsed('--price_per_hour', text)
    assert (found.amount, found.currency, found.text) == (amount, currency, text.strip())


@pytest.mark.parametrize(
    'text',
    ['', 'free', '0', '0.00 USD', '-1', '+1', '1,20', '1.', '.5', '1e3', 'nan', 'inf', '1.2.3', '1 2', '1 USD a day',
     '$1.20', '9' * 10, '1.1234567', '1 ' + 'x' * 11, '1 \x1b', '1 \udcff', '١'],
)  # fmt: skip
def test_what_is_no_price_is_refused_in_a_sentence(text):
    with pytest.raises(ConfigError) as error:
        Price.parsed('--price_per_hour', text)
    told = str(error.value)
    assert told.startswith(f'--price_per_hour is {text!r} but must be') and told.endswith("1.20 or '1.20 USD'")
    assert '\n' not in told


def test_what_a_time_costs():
    price = Price.parsed('--price_per_hour', '1.20')
    assert price.of(750) == 'about 0.25 at 1.20 an hour' and price.amount_of(750) == pytest.approx(0.25)
    assert price.of(3600 * 1000) == 'about 1200.00 at 1.20 an hour'
    assert price.of(1) == 'less than 0.01 at 1.20 an hour'
    assert Price.parsed('--price_per_hour', '3 USD').of(1800) == 'about 1.50 USD at 3 USD an hour'
