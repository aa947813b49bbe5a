"""The OpenAPI document of a plane, built from the operations beside its views."""
