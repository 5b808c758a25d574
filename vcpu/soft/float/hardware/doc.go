//go:build !amd64

package hardware
