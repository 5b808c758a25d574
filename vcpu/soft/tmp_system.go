package soft

func registerSystem() {}
