package disk

// NoSpace is noSpace.
var NoSpace = noSpace

// Parked is the number of requests that are held this moment.
func (d *Device) Parked() (n int) {
	for _, q := range d.active.Load().queues {
		q.mu.Lock()
		n += len(q.held)
		q.mu.Unlock()
	}
	return n
}
