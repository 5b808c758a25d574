#!/bin/busybox sh
# Starts the appliance's service and says when it has answered a request through
# all of it. With "once" it then ends.
bb=/bin/busybox
fail() {
	echo "the service does not start: $*" >&2
	exit 1
}
/usr/bin/python3.11 -I /srv/app.py /run/app &
app=$!

# A build server tells what it builds with.
{
	/usr/bin/gcc-12 --version && /usr/bin/git --version && /usr/bin/openssl version &&
		/usr/lib/postgresql/15/bin/postgres --version && /usr/bin/perl -e 'print "perl $^V\n"'
} >/run/tools || fail tools

/usr/sbin/nginx -c /etc/nginx/nginx.conf -g 'daemon off;' &
web=$!
# No request before it can be answered: on a slow machine, asking again and
# again would take the time that the service needs.
until [ -e /run/app ] && [ -s /run/nginx.pid ]; do
	kill -0 $app 2>/dev/null && kill -0 $web 2>/dev/null || fail "a part has ended"
	$bb usleep 10000
done
$bb wget -q -O /run/health http://127.0.0.1/api/health || fail "no health"
$bb wget -q -O /run/index http://127.0.0.1/ || fail "no page"
echo "service ready $($bb cat /run/health)"
if [ "$1" = once ]; then
	kill $app $web
	exit 0
fi
wait $app
