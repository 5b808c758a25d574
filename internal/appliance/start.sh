#!/bin/busybox sh
# Starts the appliance's service and says when it has answered a request through
# all of it. With "once" it then ends.
bb=/bin/busybox
/usr/bin/python3.11 -I /srv/app.py &
app=$!
/usr/sbin/nginx -c /etc/nginx/nginx.conf -g 'daemon off;' &
web=$!
n=0
until $bb wget -q -O /run/health http://127.0.0.1/api/health 2>/dev/null && $bb wget -q -O /run/index http://127.0.0.1/; do
	n=$((n + 1))
	if [ $n -gt 6000 ] || ! kill -0 $app || ! kill -0 $web; then
		echo "the service does not start" >&2
		exit 1
	fi
	$bb usleep 20000
done
echo "service ready $($bb cat /run/health)"
if [ "$1" = once ]; then
	kill $app $web
	exit 0
fi
wait $app
