package cache

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// childDir is set for the process that fills a cache until it is killed.
const childDir = "VMKIT_CACHE_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		if err := fill(dir); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// fill puts chunks into a cache, and says which are durable.
func fill(dir string) error {
	c, err := Open(dir, Config{BatchBytes: 64 << 10, BatchTime: time.Millisecond})
	if err != nil {
		return err
	}
	from, _ := strconv.Atoi(os.Getenv(childDir + "_FROM"))
	for n := from; n < from+2000; n++ {
		data, hash := chunk(n)
		if err := c.Put(hash, data); err != nil {
			return err
		}
		if n%10 == 9 {
			if err := c.Flush(); err != nil {
				return err
			}
			fmt.Println(n)
		}
	}
	return nil // without Close
}

func TestKill(t *testing.T) {
	dir, from := t.TempDir(), 0
	for round := range rounds(10) {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childDir+"="+dir, fmt.Sprint(childDir, "_FROM=", from))
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		s := bufio.NewScanner(out)
		last := -1
		for lines := rand.IntN(8); s.Scan(); lines-- {
			require.False(t, strings.HasPrefix(s.Text(), "error"), s.Text())
			last, err = strconv.Atoi(s.Text())
			require.NoError(t, err)
			if lines <= 0 {
				time.Sleep(time.Duration(rand.IntN(3000)) * time.Microsecond)
				break
			}
		}
		cmd.Process.Kill()
		cmd.Wait()
		c, err := Open(dir, Config{})
		require.NoError(t, err)
		for n := max(0, from-50); n < from+2000; n++ {
			there := check(t, c, n)
			require.True(t, there || n > last, "round %d: chunk %d is lost, %d was promised", round, n, last)
			if !there && n > last+100 {
				break
			}
		}
		from = max(from, last+1)
		require.NoError(t, c.Close())
	}
}
