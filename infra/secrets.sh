#!/bin/sh
# Makes the secrets of compose.yaml and ray-launcher.yaml in infra/secrets, once: a file that is there stays as it is.
# The folder is yours alone (0700). The files are readable (0444) because the users inside the containers are not you.
set -eu
cd "$(dirname "$0")"
umask 077
mkdir -p secrets
chmod 700 secrets
for name in ray_token postgres_password mlflow_password mlflow_secret_key; do
    [ -s "secrets/$name" ] && continue
    head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n' >"secrets/$name"
    chmod 444 "secrets/$name"
done
