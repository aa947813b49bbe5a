"""The text that a local stack prints when it is ready: addresses, and a command that pays."""

from __future__ import annotations

from service.settings import Settings


def banner(settings: Settings, sandbox: dict[str, str], *, key_was_given: bool) -> str:
    """The console's address, the API key, and a `curl` to paste; a configured key is not shown."""
    key = "$HOLDFAST_BOOTSTRAP_API_KEY" if key_was_given else settings.bootstrap_api_key
    provider = "the sandbox, no real money" if sandbox else settings.stripe_api_base
    return f"""
Holdfast is running, with {provider}.

  console   http://{settings.ops_bind}/
  payments  http://{settings.bind}/v1/payments   (reference: /docs)
  API key   {key}
  logs      {settings.home / "logs"}

Pay:

  curl -i http://{settings.bind}/v1/payments \\
    -H "Authorization: Bearer {key}" \\
    -H 'Content-Type: application/json' \\
    -H "Idempotency-Key: $(date +%s%N)" \\
    -d '{{"amount": 2599, "currency": "usd", "payment_method": "{settings.test_payment_method}"}}'

Ctrl-C stops everything."""
