"""What a local run says when it is ready: where to look, and a command that pays."""

from __future__ import annotations

from service.settings import Settings


def banner(settings: Settings, sandbox: dict[str, str]) -> str:
    """The console's address, the API key, and a `curl` to paste."""
    provider = "the sandbox, no real money" if sandbox else settings.stripe_api_base
    return f"""
Holdfast is running, with {provider}.

  console   http://{settings.ops_bind}/
  payments  http://{settings.bind}/v1/payments   (reference: /docs)
  API key   {settings.bootstrap_api_key}
  logs      {settings.home / "logs"}

Pay:

  curl -i http://{settings.bind}/v1/payments \\
    -H 'Authorization: Bearer {settings.bootstrap_api_key}' \\
    -H 'Content-Type: application/json' \\
    -H "Idempotency-Key: $(date +%s%N)" \\
    -d '{{"amount": 2599, "currency": "usd", "payment_method": "pm_card_visa"}}'

Ctrl-C stops everything."""
