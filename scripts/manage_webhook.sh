#!/bin/sh
CDPATH='' cd "$(dirname "$0")/.." || exit 1   # the project's directory, as ever: webhookctl.toml, data and logs are there
exec webhookctl "$@"
