package build

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// goBlock is a Go program in Markdown.
var goBlock = regexp.MustCompile("(?s)```go\n(package main\n.*?)```")

// The program in the README builds, passes go vet and is as short as its
// heading says.
func TestReadmeProgram(t *testing.T) {
	readme, err := os.ReadFile(filepath.Join(root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	found := goBlock.FindSubmatch(readme)
	if found == nil {
		t.Fatal("the README has no program")
	}
	program := string(found[1])
	if n := strings.Count(program, "\n"); n > 40 {
		t.Errorf("the program has %d lines; the README says 40", n)
	}
	dir, err := os.MkdirTemp(filepath.Join(root, "examples"), "readme-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	main := filepath.Join(dir, "main.go")
	if err := os.WriteFile(main, []byte(program), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("gofmt", "-l", main).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("gofmt: %v\n%s", err, out)
	}
	cmd := exec.Command("go", "vet", "./"+filepath.Join("examples", filepath.Base(dir)))
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("go vet: %v\n%s", err, out)
	}
}
