"""Text cannot become markup."""

import html.parser

import pytest

from dreambooth_jax.evaluation.markup import Markup, element, escaped, joined

HOSTILE = '<script>alert("1")</script> & \'x\' <!-- ]]> -->'


class Read(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ''
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_text_and_attributes_are_read_back_as_they_were():
    read = Read(element('p', HOSTILE, title=HOSTILE))
    assert read.tags == [('p', {'title': HOSTILE})] and read.text == HOSTILE


def test_what_is_markup_stays_markup_and_what_is_not_does_not():
    inner = element('b', 'x')
    assert element('p', inner, 1, None, '<') == '<p><b>x</b>1&lt;</p>'
    assert escaped(inner) is inner and joined(inner, '>') == '<b>x</b>&gt;'
    assert not isinstance(inner + '<', Markup)  # a sum with text is text


def test_names_of_attributes_are_those_of_html():
    assert element('td', class_='a', data_value=3, viewBox='0 0 1 1') == (
        '<td class="a" data-value="3" viewBox="0 0 1 1"></td>'
    )
    assert element('input', hidden=True, checked=False, value=None) == '<input hidden>'


@pytest.mark.parametrize('name', ['img', 'meta', 'br', 'wbr', 'input', 'link'])
def test_elements_without_content_have_no_end(name):
    assert element(name) == f'<{name}>'
