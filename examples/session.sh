#!/bin/sh
# Log in to a company of the demo by curl, see its data, log out.
#
#   quart-tenants demo            # in another terminal
#   examples/session.sh [COMPANY] [USER] [PASSWORD] [PORT]
set -eu

company=${1:-company1} user=${2:-user_1} password=${3:-foo} port=${4:-5000}
site=http://$company.localhost:$port
cookies=$(mktemp)
trap 'rm -f "$cookies"' EXIT

# curl resolves *.localhost by itself. The password is read from standard input: arguments are visible to others.
ask() { curl --silent --show-error --fail-with-body --cookie "$cookies" --cookie-jar "$cookies" "$@"; }

echo "log in:"
printf %s "$password" | ask --data-urlencode "uname=$user" --data-urlencode passwd@- "$site/login"
echo "data:"
ask "$site/data"
echo "log out:"
ask --request POST "$site/logout"
