"""Laws of texts that are shown to clients: they have no secret."""

import pytest

from svcrun._util.redaction import redact


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no route to redis://joe:hunter2@db/0", "no route to redis://***@db/0"),
        ("postgresql+asyncpg://u:p@ss/w:rd@[::1]:5432/d", "postgresql+asyncpg://***@[::1]:5432/d"),
        ("https://token@example.org/", "https://***@example.org/"),
        ("'amqp://a:b@x', 'amqp://c:d@y'", "'amqp://***@x', 'amqp://***@y'"),
        ("host=db password=hunter2 port=5", "host=db password=*** port=5"),
        ("host=db password='a b' port=5", "host=db password=*** port=5"),
        ('{"api_key": "hunter2", "id": 3}', '{"api_key": ***, "id": 3}'),
        ("{'DB_PASSWORD' => 'hunter2'}", "{'DB_PASSWORD' => ***}"),
        ("GET /x?access_token=hunter2&page=3", "GET /x?access_token=***&page=3"),
        ("Authorization: Bearer aGVsbG8gd29ybGQ", "Authorization: ***"),
        ("sent Basic aGVsbG8gd29ybGQ=", "sent Basic ***"),
        ("AWS_SECRET_ACCESS_KEY=hunter2", "AWS_SECRET_ACCESS_KEY=***"),
        ("Set-Cookie: id=hunter2; Path=/", "Set-Cookie: ***; Path=/"),
    ],
)
def test_a_secret_is_hidden(text: str, shown: str) -> None:
    assert redact(text, {}) == shown


@pytest.mark.parametrize(
    "text",
    [
        "password authentication failed for user 'joe'",
        "invalid token",
        "[Errno 111] Connect call failed ('127.0.0.1', 5432)",
        "could not open https://example.org/path?page=3",
        "joe@example.org has no account",
        "the author: Joe",
        "",
    ],
)
def test_a_text_without_a_secret_is_left_as_it_is(text: str) -> None:
    assert redact(text, {"address": "127.0.0.1", "name": "joe", "port": 5432}) == text


@pytest.mark.parametrize(
    "keywords",
    [
        {"password": "hunter2"},
        {"API_KEY": b"hunter2"},
        {"dsn": "postgresql://joe:hunter2@db/d"},
        {"redis_url": "redis://:hunter2@cache"},
    ],
)
def test_the_secret_of_a_keyword_is_hidden_wherever_it_stands(keywords: dict[str, object]) -> None:
    assert redact("server says: 'hunter2' is wrong", keywords) == "server says: '***' is wrong"


def test_a_short_secret_does_not_remove_words() -> None:
    assert redact("at the end", {"token": "e"}) == "at the end"
