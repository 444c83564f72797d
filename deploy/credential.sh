#!/bin/sh
# Makes the service principal as which the compose file's agent calls, and its secret: run by `docker-compose run credential`, in a container
# that has the operator's volume and the agent's two. Makes nothing where there is a secret already.
set -eu
umask 077
operator=/var/lib/redoubt to=/var/lib/agent name=${AGENT_NAME:-compose-agent}
cd "$to"
# The agent's user alone; what it keeps there it has made itself.
chown 65533:65533 /var/lib/roots
chmod 0700 /var/lib/roots
if [ -s client.secret ]; then
	echo "the agent has its secret already"
	exit 0
fi
export REDOUBT_ADDR=https://gateway:8443 REDOUBT_CACERT=$operator/ca.pem
redoubt login --user admin --password-stdin <"$operator/admin.password"
trap 'redoubt logout >/dev/null 2>&1' EXIT
rm -f /tmp/secret
redoubt service-principal create "$name" -o none || echo "$name is there already; it gets another secret"
redoubt role assignment create --scope / --role agent-host --principal "servicePrincipals/$name" -o none || echo "its role too"
redoubt service-principal add-secret "$name" --secret-file /tmp/secret -o json | sed -n 's/.*"client\(_id\|Id\)": *"\([^"]*\)".*/\2/p' >/tmp/id
[ -s /tmp/id ] || { echo "no client id came with the secret" >&2; exit 1; }
install -o 65533 -g 65533 -m 0600 /tmp/id client.id
install -o 65533 -g 65533 -m 0644 "$operator/ca.pem" ca.pem
install -o 65533 -g 65533 -m 0600 /tmp/secret client.secret
rm -f /tmp/secret
echo "the agent calls as $name, with the role agent-host and nothing else"
