'use strict';
'require form';
'require view';
'require tools.widgets as widgets';

/* Sections and options are those of /etc/config/pptp-nat, which has the names of the daemon's own
   file.  What a value may be, the daemon says: it checks all of them before it starts. */

return view.extend({
	render() {
		const map = new form.Map('pptp-nat', _('PPTP NAT'),
			_('Several PPTP clients behind one address. What is left empty has its default.'));
		let section, option;

		section = map.section(form.NamedSection, 'main', 'main', _('Service'));
		option = section.option(form.Flag, 'enabled', _('Enabled'));
		option.default = '1';
		option.rmempty = false;
		option = section.option(form.Flag, 'guard', _('With a guard'),
			_('Packets wait in the queues while the daemon is started again; takes 11 MB.'));
		option = section.option(form.Flag, 'jail', _('In a jail'),
			_('With one capability and nothing else of this router; needs the package procd-ujail.'));

		section = map.section(form.NamedSection, 'control', 'control', _('Control connections'));
		option = section.option(form.DynamicList, 'ports', _('TCP ports'), _('Of PPTP servers.'));
		option.datatype = 'port';
		option.placeholder = '1723';

		section = map.section(form.NamedSection, 'gre', 'gre', _('Data of the calls'));
		option = section.option(form.ListValue, 'datapath', _('Data path'),
			_('Entries in the kernel are faster, and calls outlive the daemon.'));
		option.value('auto', _('the kernel where it can, else the daemon'));
		option.value('conntrack', _('the kernel'));
		option.value('bpf', _('BPF programs in the kernel'));
		option.value('queue', _('the daemon'));
		option = section.option(form.ListValue, 'forwarding', _('Way of the data'),
			_('What goes past the stack meets no firewall rule.'));
		option.value('stack', _('through routing and firewall'));
		option.value('redirect', _('past them, where that is easy'));
		option.value('xdp', _('before them, where devices can; not shaped'));
		option.depends('datapath', 'bpf');
		option = section.option(form.DynamicList, 'external_addresses', _('External addresses'),
			_('That clients are translated to and that this router does not have itself.'));
		option.datatype = 'ip4addr("nomask")';
		option.depends('datapath', 'queue');

		section = map.section(form.NamedSection, 'call_ids', 'call_ids', _('Call IDs'));
		option = section.option(form.ListValue, 'allocation', _('Numbers'));
		option.value('random', _('any that is free'));
		option.value('preserve', _('the client\'s own where it is free'));
		option = section.option(form.Value, 'quarantine', _('Rest before a number is used again'), _('Seconds.'));
		option.datatype = 'ufloat';
		option.placeholder = '60';

		section = map.section(form.NamedSection, 'limits', 'limits', _('Limits'));
		for (const [ name, title, usual ] of [
			[ 'connections', _('Control connections'), '65536' ],
			[ 'calls', _('Calls'), '131072' ],
			[ 'calls_per_connection', _('Calls of one control connection'), '0' ],
			[ 'calls_per_client', _('Calls of one client'), '4096' ],
			[ 'setups_per_client', _('New calls of one client a second'), '100' ],
			[ 'openers_per_client', _('New connections of one address a second'), '100' ],
			[ 'openers', _('New connections of all addresses a second'), '4000' ],
			[ 'segments_per_client', _('Control packets of one client a second'), '1000' ],
			[ 'gre_per_host', _('Data packets of one host a second, carried by the daemon'), '50000' ]
		]) {
			option = section.option(form.Value, name, title);
			option.datatype = 'uinteger';
			option.placeholder = usual;
		}

		section = map.section(form.NamedSection, 'metrics', 'metrics', _('Metrics for Prometheus'));
		option = section.option(widgets.NetworkSelect, 'interface', _('Network'),
			_('Whose address they are served on; needs the package python3-prometheus-client.'));
		option.nocreate = true;
		option = section.option(form.Value, 'port', _('Port'));
		option.datatype = 'port';
		option.placeholder = '9723';
		option = section.option(form.Value, 'listen', _('Address and port'),
			_('In place of a network, such as 127.0.0.1:9723; or off.'));
		option.placeholder = 'off';
		option = section.option(form.Value, 'textfile', _('File'),
			_('For the textfile collector of prometheus-node-exporter-lua.'));
		option.placeholder = '/var/prometheus/pptp-nat.prom';

		section = map.section(form.NamedSection, 'state', 'state', _('What outlives a reboot'));
		option = section.option(form.Value, 'directory', _('Copies of what is known of calls'),
			_('Below /var they are in memory; a folder on the flash outlives a reboot.'));
		option.datatype = 'directory';
		option.placeholder = '/var/lib/pptp-nat';
		option = section.option(form.Value, 'sync', _('Seconds between two copies'), _('0: none.'));
		option.datatype = 'ufloat';
		option.placeholder = '300';

		section = map.section(form.NamedSection, 'log', 'log', _('Log'));
		option = section.option(form.ListValue, 'level', _('From which level on'));
		for (const level of [ 'error', 'warning', 'info', 'debug' ])
			option.value(level);
		option = section.option(form.Value, 'rate', _('Lines per second'), _('At most; 0 is no limit.'));
		option.datatype = 'uinteger';
		option.placeholder = '50';

		return map.render();
	}
});
