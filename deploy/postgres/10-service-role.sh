#!/bin/sh
# Run once by the postgres image, on an empty volume: the role that serves payments. It owns nothing;
# `migrate` gives it its rights, so that it can neither change the schema nor rewrite history.
set -eu
psql --set ON_ERROR_STOP=1 --set password="$(cat "$SERVICE_PASSWORD_FILE")" \
	--username "$POSTGRES_USER" --dbname "$POSTGRES_DB" <<'SQL'
CREATE ROLE holdfast_service LOGIN PASSWORD :'password';
SQL
