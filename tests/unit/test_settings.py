"""Settings: accepted and refused values, the messages, and a complete .env.example."""

from __future__ import annotations

import re
import traceback
from pathlib import Path

import pytest

from service.settings import Settings, SettingsError, describe

ROOT = Path(__file__).parents[2]


def test_env_example_has_every_setting_default_and_purpose():
    text = (ROOT / ".env.example").read_text()

    told = re.findall(r"^# (.+)\n#([A-Z_]+)=(.*)$", text, re.MULTILINE)

    assert told == [
        (f"{why} (secret)" if is_secret else why, name, default)
        for name, default, why, is_secret in describe()
    ]


def test_the_defaults_are_good_settings():
    settings = Settings.from_environ({})

    assert (settings.bind, settings.provider_timeout_ms) == ("127.0.0.1:8080", 5000)
    assert not settings.simulation_enabled


def test_an_empty_variable_means_the_default():
    settings = Settings.from_environ({"HOLDFAST_WEB_WORKERS": "", "DATABASE_URL": ""})

    assert settings.web_workers == 2
    assert settings.database_url is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("HOLDFAST_WEB_WORKERS", "two"),
        ("HOLDFAST_WEB_WORKERS", "0"),
        ("HOLDFAST_DB_POOL_SIZE", "-1"),
        ("HOLDFAST_BIND", "8080"),
        ("HOLDFAST_BIND", "127.0.0.1:99999"),
        ("HOLDFAST_ENV", "staging"),
        ("HOLDFAST_SIMULATION_ENABLED", "maybe"),
        ("HOLDFAST_PROVIDER", "paypal"),
        ("HOLDFAST_PROVIDER_CONCURRENCY_RATIO", "1.5"),
        ("HOLDFAST_PROVIDER_CONNECT_TIMEOUT_MS", "6000"),
        ("HOLDFAST_GRACEFUL_STOP_S", "8"),
    ],
)
def test_a_wrong_value_is_refused_and_the_setting_is_named(name, text):
    with pytest.raises(SettingsError, match=name):
        Settings.from_environ({name: text})


CHARGES = {"HOLDFAST_PROVIDER": "stripe_charges", "HOLDFAST_PROVIDER_FLOW": "one_shot"}


def test_charges_are_made_in_one_call_and_that_has_to_be_said():
    with pytest.raises(SettingsError, match="HOLDFAST_PROVIDER_FLOW=one_shot"):
        Settings.from_environ({"HOLDFAST_PROVIDER": "stripe_charges"})

    assert Settings.from_environ(CHARGES).provider == "stripe_charges"


def test_charges_are_not_rehearsed_with():
    with pytest.raises(SettingsError, match="HOLDFAST_SIMULATION_ENABLED"):
        Settings.from_environ({**CHARGES, "HOLDFAST_SIMULATION_ENABLED": "true"})


def test_a_secret_in_the_wrong_variable_is_not_repeated():
    with pytest.raises(SettingsError) as refused:
        Settings.from_environ({"HOLDFAST_WEB_WORKERS": "sk_live_oops"})

    assert "sk_live_oops" not in str(refused.value)


def test_a_secret_may_be_a_file(tmp_path):
    path = tmp_path / "key"
    path.write_text("sk_test_from_file\n")
    path.chmod(0o600)

    settings = Settings.from_environ({"STRIPE_API_KEY_FILE": str(path)})

    assert settings.stripe_api_key == "sk_test_from_file"


def test_a_secret_file_that_everybody_can_read_is_refused(tmp_path):
    path = tmp_path / "key"
    path.write_text("sk_test_from_file")
    path.chmod(0o644)

    with pytest.raises(SettingsError, match="STRIPE_API_KEY_FILE"):
        Settings.from_environ({"STRIPE_API_KEY_FILE": str(path)})


def test_secrets_are_not_in_the_repr():
    environ = {"STRIPE_API_KEY": "sk_test_x", "DATABASE_URL": "postgresql://u:pw@h"}
    settings = Settings.from_environ(environ)

    assert "sk_test_x" not in repr(settings)
    assert "pw" not in repr(settings)


def test_faults_are_never_rehearsed_with_a_live_key():
    with pytest.raises(SettingsError, match="HOLDFAST_SIMULATION_ENABLED") as refused:
        Settings.from_environ(
            {"STRIPE_API_KEY": "sk_live_canary", "HOLDFAST_SIMULATION_ENABLED": "on"}
        )

    assert "canary" not in str(refused.value)


@pytest.mark.parametrize(
    ("bind", "is_open"),
    [
        ("127.0.0.1:8080", False),
        ("127.0.1.1:8080", False),
        ("localhost:8080", False),
        ("[::1]:8080", False),
        ("0.0.0.0:8080", True),
        ("[::]:8080", True),
        ("10.0.0.7:8080", True),
    ],
)
def test_an_address_that_others_can_reach_is_known(bind, is_open):
    assert Settings.from_environ({"HOLDFAST_BIND": bind}).is_open_to_others == is_open


@pytest.mark.parametrize(
    ("key", "mode"),
    [
        *(("sk_test_x", "test"), ("rk_test_x", "test"), ("sk_org_test_x", "test")),
        *(("sk_live_x", "live"), ("rk_live_x", "live"), ("sk_org_live_x", "live")),
        *((None, None), ("", None)),
    ],
)
def test_the_providers_key_says_whether_real_money_moves(key, mode):
    environ = {} if key is None else {"STRIPE_API_KEY": key}

    assert Settings.from_environ(environ).provider_mode == mode


@pytest.mark.parametrize("ours", ["test", "live"])
@pytest.mark.parametrize("kind", ["sk", "rk"])
def test_a_bootstrap_key_of_the_other_mode_is_refused_at_start(ours, kind):
    other = {"test": "live", "live": "test"}[ours]
    environ = {"HOLDFAST_BOOTSTRAP_API_KEY": f"hf_{ours}_canary"}
    Settings.from_environ({**environ, "STRIPE_API_KEY": f"{kind}_{ours}_x"})

    with pytest.raises(SettingsError, match="HOLDFAST_BOOTSTRAP_API_KEY") as refused:
        Settings.from_environ({**environ, "STRIPE_API_KEY": f"{kind}_{other}_hush"})

    assert not any(secret in str(refused.value) for secret in ("canary", "hush"))


def test_a_key_of_unknown_shape_needs_its_mode_in_words():
    with pytest.raises(SettingsError, match="HOLDFAST_PROVIDER_MODE") as refused:
        Settings.from_environ({"STRIPE_API_KEY": "secret-canary"})
    assert "canary" not in str(refused.value)

    said = {"STRIPE_API_KEY": "secret-canary", "HOLDFAST_PROVIDER_MODE": "live"}
    assert Settings.from_environ(said).provider_mode == "live"
    with pytest.raises(SettingsError, match="SIMULATION"):
        Settings.from_environ({**said, "HOLDFAST_SIMULATION_ENABLED": "on"})


@pytest.mark.parametrize(
    "environ",
    [
        {"STRIPE_API_KEY": "sk_live_x", "HOLDFAST_PROVIDER_MODE": "test"},
        {"STRIPE_API_KEY": " sk_live_x", "HOLDFAST_PROVIDER_MODE": "test"},
        {"STRIPE_API_KEY": "sk_live_x\n"},
        {"STRIPE_API_KEY": "pk_live_x"},
    ],
)
def test_a_key_that_contradicts_its_mode_is_refused(environ):
    with pytest.raises(SettingsError, match="STRIPE_API_KEY"):
        Settings.from_environ(environ)


@pytest.mark.parametrize(
    "url",
    [
        "postgres://u:canary%ZZ@h/db",
        "postgresql://u:canary@[::1/db",
        "postgres://u:canary@h:abc/db",
        "postgres://u:canary@h:99999/db",
        "postgres://u:canary@h/db?foo=bar",
        "postgres://u:can@canary@h/db",
        "postgres://u:can/canary@h/db",
        "postgres://u:12/canary@h/db",
        "mysql://u:canary@h/db",
        "host=h password='canary",
        "host=h password=can canary",
        "canary",
    ],
)
@pytest.mark.parametrize("env", ["DATABASE_URL", "MIGRATE_DATABASE_URL"])
def test_a_malformed_database_url_is_refused_without_it(env, url):
    with pytest.raises(SettingsError, match=env) as refused:
        Settings.from_environ({env: url})

    # A chained exception of libpq quotes the address.
    assert "canary" not in "".join(traceback.format_exception(refused.value))


@pytest.mark.parametrize(
    "url",
    [
        "postgresql:///db?host=/run/postgresql",
        "postgresql://%2Frun%2Fpostgresql/db",
        "postgresql://u@h1:1,h2:2/db?target_session_attrs=read-write",
        "postgresql://u:p%40ss%2Fw%3F%23@[::1]:5432/db",
        "postgresql://h1,h2:5433/db",
        "postgresql://u:a?b#c@h/db",
        "host=@abstract dbname=db",
        "host=h password='a @/?# b' dbname=db",
        "postgresql://",
    ],
)
def test_a_database_url_of_any_form_of_libpq_is_taken(url):
    assert Settings.from_environ({"DATABASE_URL": url}).database_url == url


@pytest.mark.parametrize(
    "url",
    [
        *(
            "https://[::1",
            "https://h:canary/",
            "ht!tp://canary",
            "h:443",
            "https://",
            "https://h:0",
        ),
        "ftp://h",
    ],
)
@pytest.mark.parametrize("env", ["STRIPE_API_BASE", "HOLDFAST_PROVIDER_PROXY_URL"])
def test_a_malformed_address_is_refused_without_it(env, url):
    with pytest.raises(SettingsError, match=env) as refused:
        Settings.from_environ({env: url})

    assert "canary" not in str(refused.value)


def test_a_password_stands_in_the_address_of_a_proxy_only():
    url = "https://u:canary@h"

    assert Settings.from_environ({"HOLDFAST_PROVIDER_PROXY_URL": url}).provider_proxy_url == url
    with pytest.raises(SettingsError, match="STRIPE_API_BASE") as refused:
        Settings.from_environ({"STRIPE_API_BASE": url})

    assert "canary" not in str(refused.value)
